"""Draws the study's tables and pictures again, from its records alone: the same records give the same bytes.

  pip install matplotlib
  python -m tests.study.report [--results tests/study/results] [--readme]

Writes STUDY.md and pictures/ beside the folder of results: a table of the recipe and its baselines, one for each
factor, and the pictures. With --readme, the table of the recipe also takes its place in README.md, between the lines
`<!-- study -->` and `<!-- /study -->`.
"""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from selfie_jax.errors import ArgumentParser, UserError, run_command
from selfie_jax.evaluation.protocol import LOG_MEL_STATISTICS, UNTRAINED
from selfie_jax.evaluation.reporting.results import MAJORITY
from selfie_jax.terminal import console
from tests.processes import ROOT
from tests.study import pictures, records
from tests.study.cells import DEFAULT, PEER

RESULTS = Path(__file__).parent / 'results'
README = ROOT / 'README.md'
BEGIN, END = '<!-- study -->', '<!-- /study -->'
BASELINES = {
  MAJORITY: 'majority class',
  LOG_MEL_STATISTICS: 'log-mel statistics',
  UNTRAINED: 'the same encoder, untrained',
}
NOTE = (
  'Accuracy of a logistic regression in %, mean over seeds ± standard error over seeds. "Mean of five" is of voice, '
  'mandarin_initial, instrument, drum and sound_event. "Tuning" is five-fold cross-validation over the clips of train '
  'and valid (see tuning.py), by which settings are chosen. The choice of clips makes it uncertain by 0.8, and the '
  'mean of five on test by 1.3. Differences are of pairs of runs of one seed, which begin from the same weights where '
  'they have the same encoder: their error is smaller than that of the means, and rows with fewer seeds than the '
  'reference are to be judged by the differences alone, as their means are of fewer seeds.'
)
PEER_NOTE = (
  'What three terms have more than the peer, by pairs of runs of one seed that differ in nothing but the objective. '
  'The last row takes the pairs as independent, which those of one seed, and all tasks, are not quite.'
)
GROWTH_NOTE = (
  'Points of the mean of five, by a least-squares line over the logarithm of the clips; its error is that of the '
  'residuals alone. What stands beyond the clips seen is where the line goes: nobody has measured it.'
)

Record = Mapping[str, Any]
Scores = Mapping[str, Mapping[str, float]]  # 'valid', 'test' or 'tuning' -> task -> percent.


def main(arguments: Sequence[str]) -> None:
  """Runs the command."""
  parser = ArgumentParser(prog='python -m tests.study.report', description='Draws tables and pictures again.')
  parser.add_argument('--results', type=Path, default=RESULTS, help='the folder of the records')
  parser.add_argument('--readme', action='store_true', help='put the table of the recipe into README.md, too')
  asked = parser.parse_args(arguments)
  found = records.read_all(asked.results)
  if not found:
    raise UserError(f'{asked.results} holds no records: run some with python -m tests.study.run')
  folder = asked.results.parent
  names = pictures.draw(found, folder / 'pictures')
  page = folder / 'STUDY.md'
  page.write_text(page_of(found, names, records.read_all(asked.results / 'readout')))
  console.print(f'{page}: {len(found)} runs, {len(names)} pictures')
  if asked.readme:
    README.write_text(replaced(README.read_text(), recipe_table(found)))


def page_of(found: Sequence[Record], picture_names: Sequence[str] = (), readouts: Sequence[Record] = ()) -> str:
  """Returns all tables, and where the pictures are, as Markdown."""
  parts = ['# The study', NOTE, '## The recipe and its baselines, test', recipe_table(found)]
  parts += [f'![{name.replace("_", " ")}](pictures/{name}.svg)' for name in picture_names]
  for factor, comparison in records.comparisons_of(found).items():
    parts += [f'## {factor[0].upper()}{factor[1:]}', factor_table(factor, comparison)]
  if peers := peer_table(found):
    parts += ["## Three terms beside BYOL-A's objective", PEER_NOTE, peers]
  if growth := growth_table(found):
    parts += ['## What ten times the clips are worth', GROWTH_NOTE, growth]
  if any(UNTRAINED in record.get('baselines', {}) for record in found):
    parts += ['## Seeds, beside their encoders untrained', seeds_table(found)]
  for record in readouts:
    parts += [f'## Layers and pooling of the run {record["run"]}', readout_table(record)]
  if failed := [record for record in found if 'failed' in record]:
    lines = [f'- {record["cell"]}, seed {record["seed"]}: {record["failed"]}' for record in failed]
    parts += ['## Runs that failed', '\n'.join(lines)]
  return '\n\n'.join(parts) + '\n'


def recipe_table(found: Sequence[Record]) -> str:
  """Returns test scores of the baselines, the peer and the default cell, a column a task, as Markdown."""
  runs = [record for record in found if record['cell'] == DEFAULT and 'failed' not in record]
  if not runs:
    return f'There is no run of the cell `{DEFAULT}` yet.'
  tasks = list(runs[0]['scores']['test'])
  others = [task for task in tasks if task not in records.FIVE]
  columns = [*records.FIVE, 'mean of five', *others, 'mean of five, tuning']
  rows = [['', *columns], ['---'] * (1 + len(columns))]
  for name, title in BASELINES.items():
    if scores := [run['baselines'][name] for run in runs if name in run.get('baselines', {})]:
      rows.append([title, *_cells(scores, others)])
  peers = [record for record in found if record['cell'] == PEER and 'failed' not in record]
  for title, of_cell in (("BYOL-A's objective", peers), ('default recipe', runs)):
    if of_cell:
      title = f'{title}, {of_cell[0]["samples"]:,} clips, {_cpu_hours(of_cell)} CPU-hours'
      rows.append([title, *_cells([run['scores'] for run in of_cell], others)])
  return records.markdown(rows)


def _cells(scores: Sequence[Scores], others: Sequence[str]) -> list[str]:
  tests = [of_run['test'] for of_run in scores]
  five = [mean_and_error([test[task] for test in tests]) for task in records.FIVE]
  mean = mean_and_error([records.mean_of_five(test) for test in tests])
  tuning = mean_and_error([records.mean_of_five(of_run['tuning']) for of_run in scores])
  return [*five, mean, *(mean_and_error([test[task] for test in tests]) for task in others), tuning]


def factor_table(factor: str, comparison: records.Comparison) -> str:
  """Returns a row for each value of a factor, with the differences to the reference if there is one, as Markdown."""
  reference = comparison.reference
  splits = {'tuning': 'mean of five, tuning', 'test': 'test'}
  headings = [factor]
  for heading in splits.values():
    headings += [heading, 'difference'] if reference else [heading]
  headings += ['pitch, test', 'seeds', 'CPU-hours a run']
  rows = [headings, ['---'] * len(headings)]
  for value, runs in comparison.runs.items():
    row = [value]
    for split in splits:
      row.append(mean_and_error([run['mean_of_five'][split] for run in runs]))
      if reference:
        differences = mean_and_error(comparison.differences(value, split), '+z.1f')
        row.append('reference' if value == reference else differences)
    failed = f', {comparison.failed[value]} failed' if comparison.failed[value] else ''
    pitch = mean_and_error([run['scores']['test'][records.PITCH] for run in runs])
    rows.append([*row, pitch, f'{len(runs)}{failed}', _cpu_hours(runs) if runs else '–'])
  return records.markdown(rows)


def peer_table(found: Sequence[Record]) -> str:
  """Returns what three terms have more than the peer's objective, all else equal, a row a cell, as Markdown.

  The last row is of all pairs, with the number of those in which three terms are ahead. '' if there are no pairs.
  """
  pairs = records.pairs_with_peer(found)
  if not pairs:
    return ''
  of_cells = collections.defaultdict(list)
  for run, peer in pairs:
    of_cells[f'`{run["cell"]}` and `{peer["cell"]}`'].append((run, peer))
  headings = ['cells', 'clips', 'seeds', 'mean of five, tuning', 'test', 'pitch, test', 'ratio of CPU time']
  rows = [headings, ['---'] * len(headings)]
  for cells, of_seeds in of_cells.items():
    rows.append([cells, f'{of_seeds[0][0]["samples"]:,}', str(len(of_seeds)), *_peer_cells(of_seeds)])
  ahead = {split: sum(difference > 0 for difference in _ahead_by(pairs, split)) for split in ('tuning', 'test')}
  title = f'all; ahead in {ahead["tuning"]} on tuning, {ahead["test"]} on test'
  rows.append([title, '', str(len(pairs)), *_peer_cells(pairs)])
  return records.markdown(rows)


def _ahead_by(pairs: Sequence[tuple[Record, Record]], split: str) -> list[float]:
  return [run['mean_of_five'][split] - peer['mean_of_five'][split] for run, peer in pairs]


def _peer_cells(pairs: Sequence[tuple[Record, Record]]) -> list[str]:
  five = [mean_and_error(_ahead_by(pairs, split), '+z.1f') for split in ('tuning', 'test')]
  pitch = [run['scores']['test'][records.PITCH] - peer['scores']['test'][records.PITCH] for run, peer in pairs]
  time = np.mean([run['cpu_seconds'] / peer['cpu_seconds'] for run, peer in pairs])
  return [*five, mean_and_error(pitch, '+z.1f'), f'{time:.2f}']


def growth_table(found: Sequence[Record]) -> str:
  """Returns the points that ten times the clips are worth, a row for each curve of three lengths or more, as Markdown.

  A least-squares line through the mean of five over log10(clips), each length by the seeds that all of them have
  (scipy.stats.linregress, with its standard error, which is that of the residuals alone). '' if there is no such curve.
  """
  curves = {}
  for name, lengths in records.curves_of(found).items():
    compared = records.of_common_seeds(list(lengths.values()))
    if len(lengths) > 2 and compared[0]:
      curves[name] = list(lengths), compared
  if not curves:
    return ''
  ahead = 10 * max(clips[-1] for clips, _ in curves.values())
  of_split = [f'{split}: {what}' for split in ('tuning', 'test') for what in ('ten times', f'line at {ahead:,}')]
  rows = [['curve', 'clips', 'seeds', *of_split], ['---'] * 7]
  for name, (clips, compared) in curves.items():
    row = [name, f'{clips[0]:,} to {clips[-1]:,}, {len(clips)} lengths', str(len(compared[0]))]
    for split in ('tuning', 'test'):
      means = [np.mean([run['mean_of_five'][split] for run in runs]) for runs in compared]
      line = scipy.stats.linregress(np.log10(clips), means)
      row += [f'{line.slope:.1f} ± {line.stderr:.1f}', f'{line.intercept + line.slope * np.log10(ahead):.1f}']
    rows.append(row)
  return records.markdown(rows)


def seeds_table(found: Sequence[Record]) -> str:
  """Returns a row for each run whose encoder has been evaluated untrained, too, with both scores, as Markdown."""
  headings = ['cell', 'seed', 'mean of five, tuning', 'untrained', 'test', 'untrained', 'pitch, test', 'untrained']
  rows = [headings, ['---'] * len(headings)]
  runs = [record for record in found if UNTRAINED in record.get('baselines', {})]
  for run in sorted(runs, key=lambda run: (run['cell'], run['seed'])):
    both = run['scores'], run['baselines'][UNTRAINED]
    five = [f'{records.mean_of_five(scores[split]):.1f}' for split in ('tuning', 'test') for scores in both]
    pitch = [f'{scores["test"][records.PITCH]:.1f}' for scores in both]
    rows.append([f'`{run["cell"]}`', str(run['seed']), *five, *pitch])
  return records.markdown(rows)


def _cpu_hours(runs: Sequence[Record]) -> str:
  return f'{np.mean([run["cpu_seconds"] for run in runs]) / 3_600:.2f}'


def readout_table(record: Record) -> str:
  """Returns a row for each choice of layers and pooling of a record of `tests.study.readout`, as Markdown."""
  rows = [['layers', 'pooling over time', 'mean of five, valid', 'test', 'pitch, test'], ['---'] * 5]
  for choice in record['choices']:
    means = [f'{records.mean_of_five(choice["scores"][split]):.1f}' for split in ('valid', 'test')]
    pitch = f'{choice["scores"]["test"][records.PITCH]:.1f}'
    rows.append([', '.join(choice['layers']), choice['pool'], *means, pitch])
  return records.markdown(rows)


def mean_and_error(values: Sequence[float], form: str = '.1f') -> str:
  """Returns the mean, and from two values on its standard error: '61.3 ± 0.4'; a dash of none."""
  if not values:
    return '–'
  error = f' ± {scipy.stats.sem(values):.1f}' if len(values) > 1 else ''
  return f'{np.mean(values):{form}}{error}'


def replaced(text: str, table: str) -> str:
  """Returns a text with the table between the lines of `BEGIN` and `END`.

  Raises:
    UserError: they are not there.
  """
  before, begin, rest = text.partition(f'{BEGIN}\n')
  _, end, after = rest.partition(END)
  if not begin or not end:
    raise UserError(f'README.md has no place for the table: put the lines {BEGIN} and {END} there')
  return f'{before}{begin}{table}\n{end}{after}'


if __name__ == '__main__':
  run_command(main)
