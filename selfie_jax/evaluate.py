"""Evaluates a run: `python -m selfie_jax.evaluate --config configs/eval/X.py --workdir DIR [--config.key=value ...]`.

Reads the run's newest checkpoint, freezes the encoder, and asks of each labelled folder how much of its labels a linear
probe can read from the embeddings (the protocol: `evaluation/probe.py`). To have something to compare with, it asks the
same of the majority class, of log-mel statistics and of the same encoder untrained.

Prints a table, and writes into DIR/eval/:
  results.json            every figure (what they are: `evaluation/report.py`); written whole or not at all
  embeddings_<task>.png   the test clips' embeddings in two dimensions, coloured by label
  training_curves.png     the loss terms and the effective rank over the run
"""

from collections.abc import Sequence
from pathlib import Path

from selfie_jax.command_line import parse_evaluation
from selfie_jax.config import Evaluation
from selfie_jax.errors import UserError, run_command
from selfie_jax.evaluation import pictures, report
from selfie_jax.evaluation.embeddings import check_length
from selfie_jax.evaluation.protocol import evaluate_split
from selfie_jax.evaluation.tasks.folder import load_folder
from selfie_jax.files import make_folder
from selfie_jax.terminal import console, progress
from selfie_jax.terminal import results as stdout
from selfie_jax.training.checkpoints import load_encoder
from selfie_jax.training.state import build_encoder


def main(arguments: Sequence[str]) -> None:
  """Runs the evaluation command."""
  # ------------------------------------------------------------- all that a user can get wrong
  evaluation, workdir = parse_evaluation(arguments)
  check(evaluation)
  run = load_encoder(workdir)
  for task in evaluation.tasks:
    samples = round(task.unit_seconds * run.config.log_mel.sample_rate)
    check_length(run.encoder, samples, run.config.log_mel, what=f'a unit of task "{task.name}"')
  untrained = build_encoder(run.config) if evaluation.baselines else None
  folders = [load_folder(task) for task in evaluation.tasks]
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
  report.write_results(results, output / 'results.json')
  pictures.draw_training(workdir / 'metrics.jsonl', run.config.objective, output / 'training_curves.png')
  for folder in progress(folders, 'drawing'):
    labels = folder.labels[folder.splits[0].test]
    title = f'{folder.name}: test clips after {run.step:,} steps'
    path = output / f'embeddings_{folder.name}.png'
    pictures.draw_embeddings(embeddings[folder.name], labels, folder.classes, title, path)
  report.print_table(results, stdout)
  console.print(f'figures and pictures: {output}')


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
