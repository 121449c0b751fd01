"""Evaluates an encoder: `python -m selfie_jax.evaluate --config configs/eval/X.py --workdir DIR [--config.k=v ...]`.

Freezes the encoder of a training run's newest checkpoint, or of a model that was exported or imported, and asks of each
labelled folder how much of its labels can be read from the embeddings (how: `evaluation/protocol.py`). To have
something to compare with, it asks the same of the majority class, of log-mel statistics and of the encoder untrained.

With --watch it evaluates every checkpoint that has not been, the oldest first, waits for those to come, and ends when
the run's last step is done. All of a run's checkpoints are watched with one config: where another one's results are, it
ends. It may be stopped, or killed, at any moment: started again, it encodes nothing twice, since embeddings are kept;
what had been read out of them is read out again.

With --distributed it is one of several processes that a launcher has started (see `training/processes/detection.py`):
all of them compute embeddings, with all devices they have, and the first one does the rest. Without it a job is alone,
whatever its environment says: it may well run on a host of the training job.

Prints a table, and writes into DIR/eval/, each file whole or not at all:
  results.json            every figure of the newest step (what they are: `evaluation/reporting/results.py`)
  report.html             the same to look at, with the training's curves, a map of the embeddings, and clips to play
  step_K/results.json     the figures of step K
  scores.jsonl            one line a step: its mean score, and each task's
  events.out.tfevents.*   the scores of each step, for TensorBoard
  embeddings/             of the newest evaluation: asked for another readout, it encodes nothing again
"""
# ruff: noqa: E402

import sys

from selfie_jax.training.processes import preemption

if __name__ == '__main__':
  # There is nothing to save: a signal ends the job, and all its processes, at once, to be started again.
  stop = preemption.heed()
  if '--distributed' not in sys.argv:
    stop.join(None)

import contextlib
import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from selfie_jax.command_line import parse_evaluation
from selfie_jax.config import Cluster, Evaluation, Task
from selfie_jax.embedding.embeddings import check_length
from selfie_jax.errors import UserError, run_command
from selfie_jax.evaluation import health
from selfie_jax.evaluation.features.cache import ArrayCache
from selfie_jax.evaluation.features.shares import PATIENCE_SECONDS
from selfie_jax.evaluation.protocol import PROTOCOLS, READOUTS, TRAINED, UNTRAINED, evaluate_task
from selfie_jax.evaluation.reporting import results as report
from selfie_jax.evaluation.reporting.exhibits import make_exhibit
from selfie_jax.evaluation.reporting.page import write_page
from selfie_jax.evaluation.reporting.scores import history, is_done, write_score
from selfie_jax.evaluation.reporting.table import print_table
from selfie_jax.evaluation.tasks.folder import LabelledFolder, find_tasks, load_folder
from selfie_jax.evaluation.watch import watch
from selfie_jax.sharing.loading import load_encoder
from selfie_jax.terminal import console
from selfie_jax.terminal import results as stdout
from selfie_jax.training.monitoring.lines import parse_lines, read_scores
from selfie_jax.training.processes import cluster
from selfie_jax.training.programs import compilation
from selfie_jax.training.state import LoadedEncoder, build_encoder

# The others may wait for the first process for hours; one that is gone is noticed within a minute all the same.
_CLUSTER = Cluster(barrier_minutes=PATIENCE_SECONDS / 60)


def main(arguments: Sequence[str]) -> None:
  """Runs the evaluation command."""
  asked = parse_evaluation(arguments)
  evaluation, workdir = asked.config, asked.workdir
  check(evaluation)
  with cluster.joined(_CLUSTER) if asked.distributed else contextlib.nullcontext():
    cluster.check_alike(asked)
    console.quiet = jax.process_index() > 0
    tasks = find_tasks(evaluation)
    run = None if asked.watch else load_encoder(workdir)  # Before the tasks, whose files may be many.
    folders = [load_folder(task, evaluation.tasks_dir) for task in tasks]
    compilation.use_cache(workdir)
    done = functools.partial(is_done, workdir, evaluation=evaluation, folders=folders)
    runs = watch(workdir, done) if asked.watch else [run]
    for run in runs:
      evaluate(run, tasks, folders, evaluation, workdir)


def evaluate(
  run: LoadedEncoder,
  tasks: Sequence[Task],
  folders: Sequence[LabelledFolder],
  evaluation: Evaluation,
  workdir: epath.Path,
) -> None:
  """Evaluates one encoder on all tasks, prints the table and writes the results."""
  # ------------------------------------------------------------- what the encoder cannot do
  for folder in folders:
    samples = round(folder.unit_seconds * run.config.log_mel.sample_rate)
    window = run.config.log_mel.n_fft / run.config.log_mel.sample_rate
    if samples < run.config.log_mel.n_fft:
      raise UserError(
        f'a unit of task "{folder.name}" is {folder.unit_seconds:g} s long, and one window of the spectrogram '
        f'{window:g} s: give unit_seconds of at least that'
      )
    check_length(run.encoder, samples, run.config.log_mel, what=f'a unit of task "{folder.name}"')
  untrained = build_encoder(run.config) if evaluation.baselines else None
  output = workdir / 'eval'
  cache = ArrayCache(output / 'embeddings')
  newest = run.step is None or run.step >= max(read_scores(workdir), default=0)

  # ------------------------------------------------------------- each task
  console.print(f'evaluating {"" if run.step is None else f"step {run.step:,} of "}{workdir}')
  summaries, exhibits, embeddings = {}, {}, {TRAINED: [], UNTRAINED: []}
  for task, folder in zip(tasks, folders, strict=True):
    result = evaluate_task(folder, run, untrained, evaluation, cache)
    if result is None:
      continue  # The first process has it.
    path = task.path or os.path.join(evaluation.tasks_dir, task.name)
    summaries[task.name] = report.summarize_task(result, dataclasses.replace(task, path=path))
    exhibits[task.name] = make_exhibit(result, run.config.log_mel.sample_rate, len(tasks))
    # No more than the report needs: those of all tasks may be many gigabytes.
    for name, found in ((TRAINED, result.embeddings), (UNTRAINED, result.untrained_embeddings)):
      if found is not None:
        embeddings[name].append(health.pool([found]))
  if jax.process_index() > 0:
    return

  # ------------------------------------------------------------- report
  encoders = {TRAINED: run.encoder} if untrained is None else {UNTRAINED: untrained, TRAINED: run.encoder}
  crops = health.choose_crops(folders, run.config)
  measured = {
    name: health.measure(embeddings[name], health.embed_views(encoder, crops, run.config, run.mean, run.std))
    for name, encoder in encoders.items()
  }
  results = report.summarize(workdir, run.step, evaluation, summaries, measured)
  if newest:  # The folder itself tells of the newest step.
    report.write_results(results, output / 'results.json')
    metrics = workdir / 'metrics.jsonl'  # Of a training run.
    write_page(
      output / 'report.html',
      results,
      config=run.config,
      exhibits=exhibits,
      history=[] if run.step is None else history(workdir, results),
      metrics=[line for _, line in parse_lines(metrics.read_bytes())] if metrics.exists() else [],
    )
  if run.step is not None:
    write_score(workdir, results)  # Last: it says that this step is done.
  cache.remove_unused()
  print_table(results, stdout)
  console.print(f'figures: {output / "results.json"}, and to look at: {output / "report.html"}')


def check(evaluation: Evaluation) -> None:
  """Checks what can be known of the config before any file is touched.

  Raises:
    UserError: naming the key and its value.
  """
  if evaluation.protocol not in PROTOCOLS:
    raise UserError(f'config key "protocol" is "{evaluation.protocol}"; it can be {", ".join(PROTOCOLS)}')
  for name in evaluation.readouts:
    if name not in READOUTS:
      raise UserError(f'config key "readouts" has "{name}"; it can have {", ".join(READOUTS)}')
    if evaluation.readouts.count(name) > 1:
      raise UserError(f'config key "readouts" has "{name}" {evaluation.readouts.count(name)} times')
  if evaluation.protocol == 'evar' and (evaluation.readouts != ('linear',) or evaluation.shots):
    raise UserError(
      'protocol "evar" is that of the published linear probes alone: leave out shots, and readouts other than linear, '
      'or give protocol "corrected"'
    )
  for key in ('seeds', 'learning_rates', 'weight_decays', 'readouts', 'fine_tuning.learning_rates'):
    if not _get(evaluation, key):
      raise UserError(f'config key "{key}" is empty; at least one is needed')
  for seed in evaluation.seeds:
    if seed < 0:
      raise UserError(f'config key "seeds" has {seed}; a seed must be at least 0')
  for shots in evaluation.shots:
    if shots < 1:
      raise UserError(f'config key "shots" has {shots}; a readout needs at least 1 labelled clip a class')
  for key in ('learning_rates', 'fine_tuning.learning_rates'):
    for rate in _get(evaluation, key):
      if not rate > 0:
        raise UserError(f'config key "{key}" has {rate:g}; a learning rate must be above 0')
  counts = ('batch_size', 'epochs', 'patience')
  for key in (*counts, *(f'fine_tuning.{count}' for count in counts)):
    if _get(evaluation, key) < 1:
      raise UserError(f'config key "{key}" is {_get(evaluation, key)}; it must be at least 1')
  for decay in evaluation.weight_decays:
    if decay < 0:
      raise UserError(f'config key "weight_decays" has {decay:g}; a weight decay must be at least 0')
  if evaluation.fine_tuning.warmup_epochs < 0:
    raise UserError(
      f'config key "fine_tuning.warmup_epochs" is {evaluation.fine_tuning.warmup_epochs}; it must be at least 0'
    )
  _check_names(evaluation.tasks)


def _check_names(tasks: Sequence[Task]) -> None:
  names = [task.name for task in tasks]
  for task in tasks:
    if names.count(task.name) > 1:
      raise UserError(
        f'config key "tasks" has the name "{task.name}" {names.count(task.name)} times; names must differ'
      )
    if Path(task.name).name != task.name:
      raise UserError(f'task name "{task.name}" cannot be part of a file name: leave out the slashes')
    if task.unit_seconds < 0:
      raise UserError(f'unit_seconds of task "{task.name}" is {task.unit_seconds}; it must be above 0')


def _get(evaluation: Evaluation, key: str) -> Any:
  return functools.reduce(getattr, key.split('.'), evaluation)


if __name__ == '__main__':
  run_command(main)
