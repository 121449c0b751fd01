#!/usr/bin/env bash
# Training in N processes on this machine, started again until it has ended:
#   bash launch/local.sh N --config configs/X.py --workdir DIR [--config.key=value ...]
#
# N = 1 leaves it to the machine to say whether there are others, so it is what a worker of a TPU slice runs, too.
# GPUs are shared out evenly. On CPUs, XLA_FLAGS=--xla_force_host_platform_device_count=K gives each process K devices.
# Each line of a process is printed behind its number. SIGTERM and Ctrl-C are passed on: training saves, and this script
# ends. Exit codes: 0 done; 1 your mistake; 75 told to stop, and nothing is lost; 70 it crashes again and again, or it
# crashed when it was told to stop.
#
#   VENV                the virtual environment (.venv)
#   FRUITLESS_RESTARTS  how often training may crash in a row without coming further than ever before (5)
#   RESTART_PAUSE       seconds before the first such restart; each further one waits twice as long, up to a minute (2)
#   PEER_SECONDS        how long the others may take to end by themselves, once a process has ended (120)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${VENV:-.venv}/bin/python
restart_pause=${RESTART_PAUSE:-2}
peer_seconds=${PEER_SECONDS:-120}

say() { echo "local.sh: $*" >&2; }

fail() {
  echo "error: $*" >&2
  exit 1
}

[[ ${1:-} =~ ^[1-9][0-9]*$ ]] ||
  fail "how many processes? bash launch/local.sh N --config configs/X.py --workdir DIR, and N is not \"${1:-}\""
[[ -x $python ]] || fail "there is no $python: bash launch/setup_venv.sh makes it, or say VENV=DIR"
processes=$1
shift

# ------------------------------------------------------------------------------ signals, before anything takes time
pids=()
printers=()
told= # To stop, by a signal.

pass_on() {
  local pid
  told=1
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
}
trap pass_on TERM INT

end_all() { # With whatever they have started: each process leads a group of its own.
  local pid
  for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
}
trap end_all EXIT

# ------------------------------------------------------------------------------ GPUs: as many for each process
gpus=0
if [[ ${CUDA_VISIBLE_DEVICES:-} ]]; then
  IFS=, read -ra listed <<<"$CUDA_VISIBLE_DEVICES"
  gpus=${#listed[@]}
elif [[ ${JAX_PLATFORMS:-} != cpu ]] && command -v nvidia-smi >/dev/null; then
  gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c ^GPU || true)
fi
((gpus % processes == 0)) || fail "$gpus GPUs cannot be shared evenly by $processes processes: choose another N"

# ------------------------------------------------------------------------------ one attempt
# Should this script be killed without a chance to pass anything on, the kernel tells the processes to stop.
leash=()
if command -v setpriv >/dev/null; then leash=(setpriv --pdeathsig TERM); fi

print_lines() { # print_lines NUMBER: puts it before each line; ends with the process, not before, so that nothing is lost
  trap '' TERM INT
  exec sed -u "s/^/[$1] /"
}

start() { # start NUMBER PORT ARGUMENTS...: one process
  local number=$1 port=$2 out err ids
  local -a variables=()
  shift 2
  if ((processes > 1)); then
    variables=("JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$number")
    if ((gpus)); then
      ids=$(seq -s , $((number * gpus / processes)) $(((number + 1) * gpus / processes - 1)))
      variables+=("JAX_LOCAL_DEVICE_IDS=$ids")
    fi
  fi
  exec {out}> >(print_lines "$number")
  printers+=("$!")
  exec {err}> >(print_lines "$number" >&2)
  printers+=("$!")
  set -m # In a group of its own, out of the reach of the terminal's Ctrl-C, which this script passes on.
  env "${variables[@]}" "${leash[@]}" "$python" -m selfie_jax.train "$@" </dev/null 1>&"$out" 2>&"$err" &
  set +m
  pids+=("$!")
  exec {out}>&- {err}>&-
}

alive() { # How many of the processes have not ended?
  local pid count=0
  for pid in "${pids[@]}"; do if kill -0 "$pid" 2>/dev/null; then count=$((count + 1)); fi; done
  echo "$count"
}

verdict() { # verdict CODES...: what these exit codes of the processes amount to
  local code worst=0
  for code in "$@"; do
    case $code in
      0) ;;
      1) worst=1 && break ;;
      75) if ((worst == 0)); then worst=75; fi ;;
      *) worst=$code ;;
    esac
  done
  echo "$worst"
}

attempt() { # attempt ARGUMENTS...: starts all processes and waits for them; returns what they ended with
  local port=0 number pid code deadline='' left
  local -a codes=()
  if ((processes > 1)); then
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
  fi
  pids=() printers=()
  for ((number = 0; number < processes; number++)); do start "$number" "$port" "$@"; done
  if [[ $told ]]; then pass_on; fi # It came while they were being started.
  while left=$(alive) && ((left > 0)); do
    if [[ ! $deadline ]] && ((left < processes)); then
      deadline=$((SECONDS + peer_seconds))
    elif [[ $deadline ]] && ((SECONDS > deadline)); then
      say "$left of $processes processes have not ended $peer_seconds s after the first: killing them"
      end_all
    fi
    sleep 0.2
  done
  for pid in "${pids[@]}"; do
    code=0
    wait "$pid" || code=$?
    codes+=("$code")
  done
  end_all
  wait "${printers[@]}" || true
  pids=()
  return "$(verdict "${codes[@]}")"
}

# ------------------------------------------------------------------------------ again and again
record= # What launch/progress.py knows of the run: how many crashes in a row were fruitless, and how far it came.
judge() { # judge CODE ARGUMENTS...: fails if there should be no other start
  record=$("$python" launch/progress.py train "$record" "$@")
}

judge '' "$@" || true
while [[ ! $told ]]; do
  code=0
  attempt "$@" || code=$?
  if ((code == 0 || code == 1)); then exit "$code"; fi
  if [[ $told ]]; then
    case $code in
      75 | 130 | 143) exit 75 ;; # 130 and 143: the signal came before training heeds it, and has anything to lose.
      *) say "training ended with $code, told to stop" && exit 70 ;;
    esac
  fi

  judge "$code" "$@" || [[ $told ]] || exit 70 # Ctrl-C in a terminal ends the judge, too.
  fruitless=${record%% *}
  pause=1
  if ((fruitless)); then
    pause=$((restart_pause << (fruitless < 6 ? fruitless - 1 : 5)))
    if ((pause > 60)); then pause=60; fi
  fi
  resume=$((SECONDS + pause))
  while [[ ! $told ]] && ((SECONDS < resume)); do sleep 0.2; done
done
exit 75
