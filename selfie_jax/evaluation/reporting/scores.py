"""What is known of a run's checkpoints: one line each in eval/scores.jsonl, everything in eval/step_K/results.json.

And for TensorBoard, a file a checkpoint in eval/: it is written once, whole, and again if the checkpoint is evaluated
again, so that no point is ever there twice.
"""

import dataclasses
import json
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from selfie_jax.config import Evaluation
from selfie_jax.data.tfrecord import frame
from selfie_jax.errors import UserError
from selfie_jax.evaluation.protocol import TRAINED
from selfie_jax.evaluation.reporting import results as report
from selfie_jax.evaluation.tasks.folder import LabelledFolder
from selfie_jax.files import make_folder, write_atomically
from selfie_jax.training.monitoring.lines import SCORES, read_scores


def is_done(workdir: epath.Path, step: int, evaluation: Evaluation, folders: Sequence[LabelledFolder]) -> bool:
  """True if a checkpoint has been evaluated, on these data. One whose line or results are damaged has not.

  Raises:
    UserError: with another config. Two jobs that watch one run would else undo each other's results for ever.
  """
  path = workdir / 'eval' / f'step_{step}' / 'results.json'
  if step not in read_scores(workdir):
    return False
  try:
    found = json.loads(path.read_bytes())
    there = dict(found['evaluation'])
    data = {name: task.get('fingerprint') for name, task in found['tasks'].items()}
  except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
    return False
  wanted = json.loads(json.dumps(dataclasses.asdict(evaluation)))
  for key in there | wanted:
    if there.get(key) != wanted.get(key):
      before, now = (textwrap.shorten(repr(config.get(key)), 200) for config in (there, wanted))
      raise UserError(
        f'{path} is of another evaluation config, with {key}={before}, and this one has {now}: watch with that one, '
        f'with all tasks in one config, or rename {workdir / "eval"} first'
      )
  return data == {folder.name: folder.fingerprint for folder in folders}


def write_score(workdir: epath.Path, results: Mapping[str, Any]) -> None:
  """Writes the results of a checkpoint, and then its line, which says that all else is written.

  A line has `step`, `mean_score` over the tasks and their `scores`: the headline readout's, of the trained encoder.
  """
  step = results['step']
  folder = workdir / 'eval' / f'step_{step}'
  make_folder(folder)
  report.write_results(results, folder / 'results.json')
  write_events(workdir / 'eval', results)
  lines = history(workdir, results)
  with write_atomically(workdir / SCORES) as file:
    for line in lines:
      file.write(json.dumps(line).encode() + b'\n')


def history(workdir: epath.Path, results: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the lines of all checkpoints, these results' among them, by rising step."""
  readout = report.headline(results)
  line = {
    'step': results['step'],
    'mean_score': _trained(results['mean'][readout]),
    'scores': {name: _trained(task['readouts'][readout]) for name, task in results['tasks'].items()},
  }
  lines = read_scores(workdir) | {results['step']: line}
  return [lines[step] for step in sorted(lines)]


def _trained(figures: Mapping[str, Any]) -> float:
  return figures['representations'][TRAINED]['score']


def write_events(output: epath.Path, results: Mapping[str, Any]) -> None:
  """Writes a checkpoint's scores as TensorBoard's scalars: `<readout>/<task>` and `<readout>/mean`, trained encoder.

  In place of an `EventFileWriter`: its files cannot be replaced, nor written to an object store.
  """
  scalars = {}
  for readout, mean in results['mean'].items():
    tasks = {name: task['readouts'][readout] for name, task in results['tasks'].items()}
    for name, figures in (tasks | {'mean': mean}).items():
      scalars[f'{readout}/{name}'] = _trained(figures)
  now, step = time.time(), results['step']
  events = [Event(wall_time=now, file_version='brain.Event:2')]
  for tag, value in scalars.items():
    events.append(Event(wall_time=now, step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)])))
  # TensorBoard reads the files in the order of their names.
  with write_atomically(output / f'events.out.tfevents.{step:010d}') as file:
    file.write(b''.join(frame(event.SerializeToString()) for event in events))
