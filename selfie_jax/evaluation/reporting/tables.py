"""The report's tables."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from selfie_jax.evaluation.protocol import TRAINED, UNTRAINED
from selfie_jax.evaluation.reporting.charts.chart import NAMES
from selfie_jax.evaluation.reporting.peers import PEERS, TASKS
from selfie_jax.evaluation.reporting.results import headline, readout_title


@dataclasses.dataclass(frozen=True)
class Cell:
  """A figure, small ones under it, and whether it is the trained encoder's."""

  text: str
  details: tuple[str, ...] = ()
  ours: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
  """A row with its head."""

  name: str
  cells: list[Cell]
  details: tuple[str, ...] = ()
  ours: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
  """What the template draws."""

  caption: str
  headings: list[str]
  rows: list[Row]
  total: Row | None = None


def scores(results: Mapping[str, Any]) -> Table:
  """The headline readout: a row a task and one with their mean."""
  readout = headline(results)
  mean = results['mean'][readout]
  rows = []
  for name, task in results['tasks'].items():
    test = sum(split['test'] for split in task['clips'])
    metric = 'mAP' if task['multi_label'] else 'accuracy'
    details = (f'{len(task["classes"]):,} classes, {test:,} test clips, {metric}',)
    rows.append(Row(name, _figures(task['readouts'][readout]), details))
  headings = ['task', *(NAMES[key] for key in mean['representations'])]
  if 'difference' in mean:
    headings.append('trained − untrained')
  caption = 'Test score in %; below it its 95 % interval, and the macro-averaged F1'
  return Table(caption, headings, rows, _mean(results, _figures(mean)))


def _mean(results: Mapping[str, Any], cells: list[Cell]) -> Row | None:
  """Returns the last row; None where there is one task."""
  tasks = results['tasks'].values()
  mixed = len({task['metric'] for task in tasks}) > 1
  return Row('unweighted mean', cells, ('of accuracy and mAP',) if mixed else ()) if len(tasks) > 1 else None


def _figures(figures: Mapping[str, Any]) -> list[Cell]:
  cells = []
  for key, figure in figures['representations'].items():
    details = []
    if 'interval' in figure:
      details.append('{:.1f} – {:.1f}'.format(*(100 * end for end in figure['interval'])))
    if figure['macro_f1'] is not None:
      details.append(f'F1 {100 * figure["macro_f1"]:.1f}')
    cells.append(Cell(f'{100 * figure["score"]:.1f}', tuple(details), ours=key == TRAINED))
  if 'difference' in figures:
    difference = figures['difference']
    interval = (
      [f'{_signed(difference["interval"][0])} to {_signed(difference["interval"][1])}']
      if ('interval' in difference)
      else []
    )
    cells.append(Cell(_signed(difference['score']), tuple(interval)))
  return cells


def _signed(fraction: float) -> str:
  return f'{100 * fraction:+.1f}'.replace('-', '−')


def other_readouts(results: Mapping[str, Any]) -> Table | None:
  """The trained encoder under all readouts, the headline first; None if there are no others."""
  readouts = list(results['mean'])
  if len(readouts) == 1:
    return None

  def cells(found: Mapping[str, Any]) -> list[Cell]:
    return [
      Cell(
        f'{100 * found[readout]["representations"][TRAINED]["score"]:.1f}',
        (_signed(found[readout]['difference']['score']),) if 'difference' in found[readout] else (),
      )
      for readout in readouts
    ]

  rows = [Row(name, cells(task['readouts'])) for name, task in results['tasks'].items()]
  headings = ['task', *map(readout_title, readouts)]
  baselines = 'difference' in results['mean'][readouts[0]]
  caption = 'Test score of the trained encoder in %' + ('; below it, trained minus untrained' if baselines else '')
  return Table(caption, headings, rows, _mean(results, cells(results['mean'])))


def published(results: Mapping[str, Any]) -> Table:
  """This encoder's scores on those of the nine tasks that were evaluated, and the published ones."""
  shared = [name for name in TASKS if name in results['tasks']]
  readout = headline(results)
  found = [results['tasks'][name]['readouts'][readout]['representations'][TRAINED]['score'] for name in shared]
  rows = [
    Row(
      'This encoder',
      [Cell(f'{100 * score:.1f}') for score in found],
      (f'measured here, protocol {results["protocol"]}',),
      ours=True,
    )
  ]
  for model, accuracies in PEERS.items():
    values = [accuracies[name] for name in shared]
    rows.append(Row(model, [Cell('–' if value is None else f'{value:.1f}') for value in values]))
  caption = 'Test accuracy in %; all but the first row are published numbers'
  return Table(caption, ['encoder', *(TASKS[name] for name in shared)], rows)


_HEALTH = {  # What it is, how it is read, how it is written.
  'rankme': ('Effective rank (RankMe)', 'higher: more dimensions are used', '.1f'),
  'alignment': ('Alignment', 'lower: two views of a crop lie closer', '.3f'),
  'uniformity': ('Uniformity', 'lower: clips are spread out more', '.3f'),
  'mean_correlation': ('Correlation between dimensions, mean |r|', 'lower: less is said twice', '.3f'),
  'dead_dimensions': ('Dimensions that do not vary', '0 is best', ','),
}


def health(measured: Mapping[str, Any]) -> Table:
  """The health's single figures, of the trained and of the untrained encoder."""
  encoders = [key for key in (UNTRAINED, TRAINED) if key in measured]
  rows = [
    Row(
      title,
      [Cell(format(measured[key][figure], form).replace('-', '−'), ours=key == TRAINED) for key in encoders],
      (reading,),
    )
    for figure, (title, reading, form) in _HEALTH.items()
    if all(figure in measured[key] for key in encoders)
  ]
  quantiles = [measured[key]['std']['quantiles'] for key in encoders]
  cells = [
    Cell(f'{found["50%"]:.3g}', (f'{found["5%"]:.2g} – {found["95%"]:.2g}',), ours=key == TRAINED)
    for key, found in zip(encoders, quantiles, strict=True)
  ]
  rows.append(Row('Standard deviation of a dimension', cells, ('median; below it the middle 90 %',)))
  return Table('How the embeddings fill their space', ['', *(NAMES[key] for key in encoders)], rows)
