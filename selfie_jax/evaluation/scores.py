"""What is known of a run's checkpoints: one line each in eval/scores.jsonl, everything in eval/step_K/results.json."""

import dataclasses
import json
import textwrap
from collections.abc import Mapping
from typing import Any

from etils import epath

from selfie_jax.config import Evaluation
from selfie_jax.errors import UserError
from selfie_jax.evaluation import report
from selfie_jax.files import make_folder, write_atomically
from selfie_jax.training.monitoring.lines import parse_lines


def read_scores(output: epath.Path) -> dict[int, dict[str, Any]]:
  """Returns the lines of scores.jsonl in the folder `eval`, by step. Broken lines do not count."""
  path = output / 'scores.jsonl'
  return {line['step']: line for _, line in parse_lines(path.read_bytes())} if path.exists() else {}


def is_done(output: epath.Path, step: int, evaluation: Evaluation) -> bool:
  """True if a checkpoint has been evaluated.

  Raises:
    UserError: with another config. Two jobs that watch one run would else undo each other's results for ever.
  """
  path = output / f'step_{step}' / 'results.json'
  if step not in read_scores(output) or not path.exists():
    return False
  try:
    there = json.loads(path.read_text())['evaluation']
  except (ValueError, KeyError, TypeError):  # Damaged: to be written again.
    return False
  wanted = json.loads(json.dumps(dataclasses.asdict(evaluation)))
  for key in there | wanted:
    if there.get(key) != wanted.get(key):
      before, now = (textwrap.shorten(repr(config.get(key)), 200) for config in (there, wanted))
      raise UserError(
        f'{path} is of another evaluation config, with {key}={before}, and this one has {now}: watch with that one, '
        f'with all tasks in one config, or rename {output} first'
      )
  return True


def write_score(output: epath.Path, results: Mapping[str, Any]) -> None:
  """Writes the results of a checkpoint, and then its line, which says that all else is written.

  A line has `step`, `mean_accuracy` and `accuracies`, one a task: those of the trained encoder.
  """
  folder = output / f'step_{results["step"]}'
  make_folder(folder)
  report.write_results(results, folder / 'results.json')
  trained = {name: task['representations']['trained']['accuracy'] for name, task in results['tasks'].items()}
  mean = results['mean']['representations']['trained']['accuracy']
  line = {'step': results['step'], 'mean_accuracy': mean, 'accuracies': trained}
  scores = read_scores(output) | {results['step']: line}
  with write_atomically(output / 'scores.jsonl') as file:
    for _, line in sorted(scores.items()):
      file.write(json.dumps(line).encode() + b'\n')
