# shellcheck shell=bash
# For train.sbatch and evaluate.sbatch, which source it: whether a job that has ended goes back into the queue.

record_file=.fruitless-$SLURM_JOB_ID # What launch/progress.py knows of the job's starts so far.

say() { echo "$SLURM_JOB_NAME: $*" >&2; }

is_running() { # Otherwise Slurm has already decided what becomes of the job: requeued, or cancelled.
  [[ $(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID") == RUNNING ]]
}

judge() { # judge train|evaluate CODE ARGUMENTS...: fails if there should be no other start
  local kind=$1 record
  shift
  record=$("${VENV:-.venv}/bin/python" launch/progress.py "$kind" "$(cat "$record_file" 2>/dev/null || true)" "$@") || return 1
  echo "$record" >"$record_file"
}

end() { # end train|evaluate CODE ARGUMENTS...: the job's last words
  local code=$2
  if ((code == 0 || code == 1)) || ! is_running; then
    rm -f "$record_file"
  elif judge "$@"; then
    say "back into the queue (start $((${SLURM_RESTART_COUNT:-0} + 2)))"
    scontrol requeue "$SLURM_JOB_ID"
  else
    rm -f "$record_file"
    code=70
  fi
  exit "$code"
}
