"""Results as tables on the terminal."""

from collections.abc import Mapping
from typing import Any

import rich.console
import rich.markup
import rich.table

from selfie_jax.evaluation.protocol import TRAINED
from selfie_jax.evaluation.reporting.results import HEADINGS, headline, readout_title


def print_table(results: Mapping[str, Any], console: rich.console.Console) -> None:
  """Prints the headline readout, a row a task and one with their mean, and what the other readouts give; in percent.

  Fits 80 columns.
  """
  readout = headline(results)
  console.print(_headline_table(results, readout))
  for name, task in results['tasks'].items():
    difference = task['readouts'][readout].get('difference')
    if difference and difference['score'] < 0:
      high = difference['interval'][1]
      reading = 'the test clips are too few to tell them apart' if high >= 0 else 'more than chance explains'
      line = f'{name}: the trained encoder is below the untrained one; {reading}. {task["caveat"]}'
      console.print(line.rstrip(), markup=False)
  others = [name for name in results['mean'] if name != readout]
  if others:
    console.print(_other_readouts_table(results, others))


def _headline_table(results: Mapping[str, Any], readout: str) -> rich.table.Table:
  mean = results['mean'][readout]
  table = _table(
    f'Test {_metrics(results)} in %: readout {readout_title(readout)}, protocol {results["protocol"]}, '
    f'{_checkpoint(results)}',
    'Under each score: its 95 % interval over the choice of test clips, and the macro-averaged F1.',
  )
  for name in mean['representations']:
    style = 'bold' if name == TRAINED else ''
    table.add_column(HEADINGS[name], justify='right', overflow='fold', style=style)
  if 'difference' in mean:
    table.add_column('trained -\nuntrained', justify='right', overflow='fold')
  for name, task in results['tasks'].items():
    test = sum(split['test'] for split in task['clips'])
    metric = ['mAP'] if task['multi_label'] else []
    label = _cell(name, *metric, f'{len(task["classes"])} classes', f'{test:,} clips')
    table.add_row(label, *_figures(task['readouts'][readout]), end_section=True)
  table.add_row('mean', *_figures(mean))
  return table


def _other_readouts_table(results: Mapping[str, Any], readouts: list[str]) -> rich.table.Table:
  baselines = 'difference' in results['mean'][readouts[0]]
  table = _table(
    'The trained encoder under the other readouts, in %',
    'Under each score: trained minus untrained.' if baselines else None,
  )
  for readout in readouts:
    table.add_column(readout_title(readout).replace(' ', '\n'), justify='right', overflow='fold')
  rows = [(name, task['readouts']) for name, task in results['tasks'].items()]
  for name, found in [*rows, ('mean', results['mean'])]:
    cells = []
    for readout in readouts:
      difference = found[readout].get('difference')
      details = [f'{100 * difference["score"]:+.1f}'] if difference else []
      cells.append(_cell(f'{100 * found[readout]["representations"][TRAINED]["score"]:.1f}', *details))
    table.add_row(rich.markup.escape(name), *cells, end_section=True)
  return table


def _table(title: str, caption: str | None) -> rich.table.Table:
  table = rich.table.Table(
    title=rich.markup.escape(title), caption=caption, title_justify='left', caption_justify='left'
  )
  # Folded, never cut short with an ellipsis: a figure that is cut is a wrong figure.
  table.add_column('task', overflow='fold')
  return table


def _metrics(results: Mapping[str, Any]) -> str:
  """Returns the names of the metrics that the scores are."""
  names = {'mAP' if task['multi_label'] else 'accuracy' for task in results['tasks'].values()}
  return ' and '.join(sorted(names))


def _checkpoint(results: Mapping[str, Any]) -> str:
  step = results['step']
  return results['workdir'] if step is None else f'step {step:,} of {results["workdir"]}'


def _figures(figures: Mapping[str, Any]) -> list[str]:
  """Returns the cells of one task's representations and of its difference, or of the mean over tasks."""
  cells = []
  for figure in figures['representations'].values():
    macro_f1 = [] if figure['macro_f1'] is None else [f'F1 {100 * figure["macro_f1"]:.1f}']
    cells.append(_cell(f'{100 * figure["score"]:.1f}', *_interval(figure, '{:.1f}-{:.1f}'), *macro_f1))
  if 'difference' in figures:
    difference = figures['difference']
    interval = _interval(difference, '{:+.1f} to {:+.1f}')
    cells.append(_cell(f'{100 * difference["score"]:+.1f}', *interval))
  return cells


def _interval(figure: Mapping[str, Any], form: str) -> list[str]:
  """Returns the interval's ends in percent, written in the given form, if there is an interval."""
  return [form.format(*(100 * end for end in figure['interval']))] if 'interval' in figure else []


def _cell(main: str, *details: str) -> str:
  return '\n'.join([rich.markup.escape(main), *(f'[not bold dim]{detail}[/]' for detail in details)])
