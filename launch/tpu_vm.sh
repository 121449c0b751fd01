#!/usr/bin/env bash
# Training on Cloud TPU VMs, by queued resources: bash launch/tpu_vm.sh COMMAND [options] [-- TRAINING_ARGUMENTS]
#
#   up       all of it until training has ended: create, wait, install, run; again after preemptions, for as long as it
#            takes to be given slices
#   create   ask for the slices              wait    until they are there
#   install  copy what is committed in this checkout to all workers, and install it
#   run      start training on all workers; it goes on without this machine, and restarts itself after crashes
#   status   "running", or what training has ended with, which is this command's exit code, too
#   logs     follow the first worker's log (its standard output and error, in selfie_jax/train.log)
#   stop     tell training to save and to end
#   resume   after a preemption: delete what is left, and create, wait, install, run
#   delete   give the slices back
#
# Options, each of which can be an environment variable (--name run1 or NAME=run1; --spot or SPOT=1):
#   --name NAME           of the queued resource and of its nodes
#   --zone ZONE           such as us-west4-a
#   --type TYPE           accelerator type, such as v5litepod-256, v5p-128, v6e-64
#   --runtime RUNTIME     runtime version (the one for TYPE)
#   --project PROJECT     (gcloud's own default)
#   --node_count N        slices; several of them train one model (1)
#   --spot                cheaper, and preempted at any time
#   --poll_seconds S      between two questions whether something has changed (60)
#   --dry_run             print each command that would be run, one a line, and run none
#
#   bash launch/tpu_vm.sh up --name run1 --zone us-west4-a --type v5litepod-256 --spot -- \
#     --config configs/audioset_vit.py --workdir gs://BUCKET/run1 --config.data.path=gs://BUCKET/audioset
#
# Exit codes: 0 done; 1 a mistake, training's included; 70 training crashes again and again; 75 it was told to stop;
# 3 the slices are gone (wait, run, status): resume.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly GONE=3
readonly ABSENT=ABSENT # The state of what was not created, or is deleted.

say() { echo "tpu_vm.sh: $*" >&2; }

fail() {
  echo "error: $*" >&2
  exit 1
}

# ------------------------------------------------------------------------------ arguments
command=${1:-}
case $command in
  up | create | wait | install | run | status | logs | stop | resume | delete) shift ;;
  *) fail "which command? bash launch/tpu_vm.sh up|create|wait|install|run|status|logs|stop|resume|delete, not \"$command\"" ;;
esac
name=${NAME:-} zone=${ZONE:-} project=${PROJECT:-} type=${TYPE:-} runtime=${RUNTIME:-}
node_count=${NODE_COUNT:-1} spot=${SPOT:-} poll_seconds=${POLL_SECONDS:-60} dry_run=${DRY_RUN:-}
while (($#)); do
  case $1 in
    --spot) spot=1 && shift && continue ;;
    --dry_run) dry_run=1 && shift && continue ;;
    --) shift && break ;;
    --name | --zone | --project | --type | --runtime | --node_count | --poll_seconds) ;;
    *) fail "unknown option $1: training's arguments come after --" ;;
  esac
  (($# > 1)) || fail "$1 wants a value"
  printf -v "${1#--}" '%s' "$2"
  shift 2
done

[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name must be small letters, digits and \"-\", got \"$name\""
[[ $zone ]] || fail "which zone? --zone us-west4-a, or ZONE=..."
[[ $node_count =~ ^[1-9][0-9]*$ ]] || fail "--node_count must be at least 1, got \"$node_count\""
[[ $poll_seconds =~ ^[0-9]+$ ]] || fail "--poll_seconds must be a number, got \"$poll_seconds\""
case $command in
  up | create | resume)
    [[ $type ]] || fail "which TPU? --type v5litepod-256, or TYPE=..."
    if [[ ! $runtime ]]; then
      case $type in # https://cloud.google.com/tpu/docs/runtimes
        v4-*) runtime=tpu-ubuntu2204-base ;;
        v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
        v5p-*) runtime=v2-alpha-tpuv5 ;;
        v6e-*) runtime=v2-alpha-tpuv6e ;;
        *) fail "which runtime version has --type $type? --runtime ..., see https://cloud.google.com/tpu/docs/runtimes" ;;
      esac
    fi
    ;;
esac
case $command in
  up | run | resume)
    [[ " $*" == *" --workdir"[\ =]"gs://"* ]] ||
      fail "training needs --workdir gs://..., which all workers see, after --: got \"$*\""
    ;;
  *) (($# == 0)) || fail "$command takes no training arguments, got \"$*\"" ;;
esac
[[ $dry_run ]] || command -v gcloud >/dev/null || fail "there is no gcloud: https://cloud.google.com/sdk/docs/install"

# ------------------------------------------------------------------------------ what is asked of gcloud
place=("--zone=$zone")
if [[ $project ]]; then place+=("--project=$project"); fi

execute() { # execute COMMAND...: or print it, with --dry_run
  if [[ $dry_run ]]; then
    local word line=
    for word in "$@"; do
      if [[ $word == *[!-a-zA-Z0-9_=:/.,]* ]]; then word=${word@Q}; fi
      line+=" $word"
    done
    echo "${line:1}"
  else
    "$@"
  fi
}

queued() { # queued VERB ARGUMENTS...
  execute gcloud compute tpus queued-resources "$@" "${place[@]}"
}

everywhere() { # everywhere COMMAND: on all workers of all slices
  queued ssh "$name" --worker=all --node=all --batch-size=all "--command=$1"
}

state() { # ABSENT, WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, FAILED, SUSPENDING, SUSPENDED, ...; fails if nobody answers
  local answer
  # A list, because `describe` fails in the same way when there is nothing as when there is no connection.
  answer=$(queued list "--filter=name~\"(^|/)$name\$\"" '--format=value(state.state)') || return
  echo "${answer:-$ABSENT}"
}

# ------------------------------------------------------------------------------ the commands
create() {
  local nodes=("--node-id=$name")
  if ((node_count > 1)); then nodes=("--node-count=$node_count" "--node-prefix=$name"); fi
  if [[ $spot ]]; then nodes+=(--spot); fi
  queued create "$name" "--accelerator-type=$type" "--runtime-version=$runtime" "${nodes[@]}" --async
}

wait_for_slices() {
  local now last=
  while now=$(state); do
    if [[ $dry_run ]]; then
      echo "$now"
      return
    fi
    if [[ $now != "$last" ]]; then say "$name is $now"; fi
    last=$now
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | "$ABSENT") return "$GONE" ;;
    esac
    sleep "$poll_seconds"
  done
  return 1
}

install() {
  local archive=${TMPDIR:-/tmp}/selfie_jax-$name.tar.gz python
  # Ubuntu 22.04, which the runtimes are, has Python 3.10.
  python='command -v python3.12 python3.11 >/dev/null || (sudo apt-get update -qq && sudo apt-get install -y -qq python3.11-venv)'
  # Each step only after the one before, also where `set -e` does not reach: under `if`, `&&` and `||`.
  execute git archive --format=tar.gz "--output=$archive" HEAD &&
    queued scp "$archive" "$name:selfie_jax.tar.gz" --worker=all --node=all --batch-size=all &&
    everywhere "set -e; $python; mkdir -p selfie_jax; tar -xzf selfie_jax.tar.gz -C selfie_jax; cd selfie_jax; bash launch/setup_venv.sh; .venv/bin/python -m pip install --quiet -r launch/requirements-tpu.txt"
}

run() { # run TRAINING_ARGUMENTS...
  local arguments
  arguments=$(printf '%q ' "$@")
  # A session of its own: the end of this connection is not training's end. Started twice, it is there once.
  everywhere "cd selfie_jax; if [ -e train.pid ] && kill -0 \$(cat train.pid) 2>/dev/null; then echo it runs already; exit; fi; rm -f train.code; setsid nohup bash -c 'echo \$\$ >train.pid; bash launch/local.sh 1 \"\$@\"; echo \$? >train.code' run $arguments>>train.log 2>&1 </dev/null &"
}

status() { # prints "running" or a word on the end; returns training's exit code, 0 while it is running
  local answers code worst=0
  answers=$(everywhere "echo train_code=\$(cat selfie_jax/train.code 2>/dev/null || echo running)") || return "$GONE"
  if [[ $dry_run ]]; then
    echo "$answers"
    return
  fi
  if [[ $answers == *train_code=running* ]]; then
    echo running
    return
  fi
  while read -r code; do
    if ((code == 1 || (worst != 1 && code > 0))); then worst=$code; fi
  done < <(grep -o 'train_code=[0-9]*' <<<"$answers" | cut -d= -f2)
  [[ $answers == *train_code=* ]] || return "$GONE"
  echo "ended with $worst"
  return "$worst"
}

stop() {
  # The script passes it on to training, and does not start that again.
  everywhere "cd selfie_jax && pkill -TERM --parent \$(cat train.pid) --full launch/local.sh"
}

logs() {
  queued ssh "$name" --worker=0 --node=0 '--command=tail -n 100 -F selfie_jax/train.log'
}

delete() {
  queued delete "$name" --force --quiet
}

start() { # start TRAINING_ARGUMENTS...: from slices that were asked for to training
  wait_for_slices && install && run "$@"
}

resume() { # resume TRAINING_ARGUMENTS...
  delete && create && start "$@"
}

up() { # up TRAINING_ARGUMENTS...: one step at a time, according to what is there
  local now last='' there='' training='' answer code
  if [[ $dry_run ]]; then
    state
    create
    start "$@"
    state
    status
    echo '# after a preemption, and so on until training has ended:'
    delete
    create
    start "$@"
    return
  fi
  while :; do
    now=$(state) || now=UNKNOWN
    if [[ $now != "$last" ]]; then say "$name is $now"; fi
    if [[ $now != ACTIVE && $now != UNKNOWN ]]; then training=; fi
    case $now in
      UNKNOWN) [[ $last ]] || return 1 ;; # At the very first it is a mistake, later a lost connection.
      "$ABSENT")
        if create; then
          there=1
        elif [[ ! $there ]]; then
          return 1
        fi
        ;;
      FAILED | SUSPENDING | SUSPENDED)
        there=1
        delete || true # Or the next time: the state says so.
        ;;
      ACTIVE)
        there=1
        if [[ ! $training ]]; then
          if install && run "$@"; then training=started; fi
        else
          code=0
          answer=$(status) || code=$?
          if [[ $answer == ended* ]] && [[ $code != 75 || $training == stopped ]]; then
            say "training $answer; the slices are still there: bash launch/tpu_vm.sh delete --name $name --zone $zone"
            return "$code"
          fi
          # A preemption tells training to stop before it shows in the state: let us look at that once more.
          if [[ $answer == ended* ]]; then training=stopped; fi
        fi
        ;;
      *) there=1 ;;
    esac
    last=$now
    sleep "$poll_seconds"
  done
}

case $command in
  wait) wait_for_slices ;;
  *) "$command" "$@" ;;
esac
