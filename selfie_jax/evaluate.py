"""Evaluates a run: `python -m selfie_jax.evaluate --config configs/eval/X.py --workdir DIR [--watch] [--config.k=v]`.

Reads the run's newest checkpoint, freezes the encoder, and asks of each labelled folder how much of its labels a linear
probe can read from the embeddings (the protocol: `evaluation/probe.py`). To have something to compare with, it asks the
same of the majority class, of log-mel statistics and of the same encoder untrained.

With --watch it evaluates every checkpoint that has not been, the oldest first, waits for those to come, and ends when
the run's last step is done. It may be stopped, or killed, at any moment, and goes on where it was. All of a run's
checkpoints are watched with one config: where another one's results are, it ends.

Prints a table, and writes into DIR/eval/, each file whole or not at all:
  results.json            every figure of the newest step (what they are: `evaluation/report.py`)
  step_K/results.json     the same of step K
  scores.jsonl            one line a step: its mean accuracy, and each task's
  embeddings_<task>.png   the test clips' embeddings in two dimensions, coloured by label
  training_curves.png     the loss terms and the effective rank over the run
"""
# ruff: noqa: E402

from selfie_jax.training.processes import preemption

if __name__ == '__main__':
  # There is nothing to save: a signal ends the job at once, to be started again. And nobody to ask: the job is alone,
  # even on a host of a cluster, whose environment speaks of others.
  preemption.heed().join(None)

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath

from selfie_jax.command_line import parse_evaluation
from selfie_jax.config import Evaluation
from selfie_jax.errors import UserError, run_command
from selfie_jax.evaluation import pictures, report
from selfie_jax.evaluation.embeddings import check_length
from selfie_jax.evaluation.protocol import evaluate_split
from selfie_jax.evaluation.scores import is_done, read_scores, write_score
from selfie_jax.evaluation.tasks.folder import LabelledFolder, load_folder
from selfie_jax.evaluation.watch import watch
from selfie_jax.files import make_folder
from selfie_jax.terminal import console, progress
from selfie_jax.terminal import results as stdout
from selfie_jax.training.checkpointing.checkpoints import LoadedEncoder, load_encoder
from selfie_jax.training.state import build_encoder


def main(arguments: Sequence[str]) -> None:
  """Runs the evaluation command."""
  asked = parse_evaluation(arguments)
  evaluation, workdir = asked.config, asked.workdir
  check(evaluation)
  output = workdir / 'eval'
  if not asked.watch:
    run = load_encoder(workdir)
    evaluate(run, [load_folder(task) for task in evaluation.tasks], evaluation, workdir)
    return
  folders = [load_folder(task) for task in evaluation.tasks]
  for run in watch(workdir, functools.partial(is_done, output, evaluation=evaluation)):
    evaluate(run, folders, evaluation, workdir)


def evaluate(
  run: LoadedEncoder, folders: Sequence[LabelledFolder], evaluation: Evaluation, workdir: epath.Path
) -> None:
  """Evaluates one checkpoint on all tasks, prints the table and writes the results."""
  # ------------------------------------------------------------- what its encoder cannot do
  for task in evaluation.tasks:
    samples = round(task.unit_seconds * run.config.log_mel.sample_rate)
    check_length(run.encoder, samples, run.config.log_mel, what=f'a unit of task "{task.name}"')
  untrained = build_encoder(run.config) if evaluation.baselines else None
  output = workdir / 'eval'
  make_folder(output)

  # ------------------------------------------------------------- each split of each task
  console.print(f'evaluating step {run.step:,} of {workdir}')
  tasks, embeddings = {}, {}
  for task, folder in zip(evaluation.tasks, folders, strict=True):
    splits = []
    for number, split in enumerate(folder.splits, 1):
      title = task.name if len(folder.splits) == 1 else f'{task.name}, fold {number} of {len(folder.splits)}'
      splits.append(
        evaluate_split(folder, split, run, untrained, evaluation, unit_seconds=task.unit_seconds, title=title)
      )
    tasks[task.name] = report.summarize_task(folder, splits, task)
    embeddings[task.name] = splits[0].test_embeddings

  # ------------------------------------------------------------- report
  results = report.summarize(workdir, run.step, evaluation, tasks)
  if run.step >= max(read_scores(output), default=0):  # The folder itself tells of the newest step.
    report.write_results(results, output / 'results.json')
    pictures.draw_training(workdir / 'metrics.jsonl', run.config.objective, output / 'training_curves.png')
    draw_embeddings(run.step, folders, embeddings, output)
  write_score(output, results)  # Last: it says that this step is done.
  report.print_table(results, stdout)
  console.print(f'figures and pictures: {output}')


def draw_embeddings(
  step: int, folders: Sequence[LabelledFolder], embeddings: dict[str, np.ndarray], output: epath.Path
) -> None:
  """Draws a picture of each task's test clips (of its first fold)."""
  for folder in progress(folders, 'drawing'):
    labels = folder.labels[folder.splits[0].test]
    title = f'{folder.name}: test clips after {step:,} steps'
    path = output / f'embeddings_{folder.name}.png'
    pictures.draw_embeddings(embeddings[folder.name], labels, folder.classes, title, path)


def check(evaluation: Evaluation) -> None:
  """Checks what can be known of the config before any file is touched.

  Raises:
    UserError: naming the key and its value.
  """
  names = [task.name for task in evaluation.tasks]
  for task in evaluation.tasks:
    if names.count(task.name) > 1:
      raise UserError(
        f'config key "tasks" has the name "{task.name}" {names.count(task.name)} times; names must differ'
      )
    if Path(task.name).name != task.name:
      raise UserError(f'task name "{task.name}" cannot be part of a file name: leave out the slashes')
    if task.unit_seconds <= 0:
      raise UserError(f'unit_seconds of task "{task.name}" is {task.unit_seconds}; it must be above 0')
  for key in ('seeds', 'learning_rates'):
    if not getattr(evaluation, key):
      raise UserError(f'config key "{key}" is empty; a probe needs at least one')
  for seed in evaluation.seeds:
    if seed < 0:
      raise UserError(f'config key "seeds" has {seed}; a seed must be at least 0')
  for rate in evaluation.learning_rates:
    if not rate > 0:
      raise UserError(f'config key "learning_rates" has {rate:g}; a learning rate must be above 0')
  for key in ('batch_size', 'epochs', 'patience'):
    if getattr(evaluation, key) < 1:
      raise UserError(f'config key "{key}" is {getattr(evaluation, key)}; it must be at least 1')


if __name__ == '__main__':
  run_command(main)
