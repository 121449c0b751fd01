"""The study's pictures, SVG files without a date: factors, score against samples and CPU time, health, collapse."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.study import records
from tests.study.cells import DEFAULT, SAMPLES, WITHOUT

# Okabe and Ito's colours, which people with any kind of colour vision tell apart, and a marker of its own for each.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
MARKERS = 'osD^vP'
_STYLE = {'svg.hashsalt': 'study', 'svg.fonttype': 'none', 'font.size': 9, 'axes.grid': True, 'grid.alpha': 0.3}
HEALTH = {
  'effective_rank': 'effective rank of the embeddings',
  'embedding_std': 'std of the embeddings',
  'mean_correlation': 'mean |correlation| of the features',
}

Record = Mapping[str, Any]


def draw(found: Sequence[Record], folder: Path) -> list[str]:
  """Draws the pictures that the records have something for; returns their names."""
  done = [record for record in found if 'failed' not in record]
  of_samples = [record for record in done if SAMPLES in record['values']]
  of_default = [record for record in done if record['cell'] == DEFAULT]
  without = [record for record in done if WITHOUT in record['values']]
  if len({record['cell'] for record in without}) < 2:
    without = []  # Nothing to compare yet.
  compared = {factor: each for factor, each in records.comparisons_of(found).items() if each.reference}
  drawn = []
  with matplotlib.rc_context(_STYLE):
    for name, runs, figure_of in (
      ('factors', compared, factors_figure),
      ('score_and_samples', of_samples, samples_figure),
      ('score_and_cpu_time', done, cpu_time_figure),
      ('health_of_the_default', of_default, health_figure),
      ('without_a_term', without, health_figure),
    ):
      if runs:
        folder.mkdir(parents=True, exist_ok=True)
        figure_of(runs).savefig(folder / f'{name}.svg', metadata={'Date': None})
        drawn.append(name)
  return drawn


def factors_figure(comparisons: Mapping[str, records.Comparison]) -> Figure:
  """Draws by how much each value of each factor is better than the factor's reference, on tuning and on test.

  A mark is a mean over seeds, with its standard error; a hollow mark is a single pair of runs.
  """
  rows = [
    (f'{factor}: {value}', each, value)
    for factor, each in comparisons.items()
    for value in each.runs
    if value != each.reference and each.runs[value]
  ]
  figure = Figure((9, 1 + 0.19 * len(rows)), layout='constrained')
  axes = figure.subplots(1, 2, sharey=True)
  for panel, split, colour in zip(axes, ('tuning', 'test'), COLOURS, strict=False):
    panel.axvline(0, color='black', linewidth=0.8)
    for i, (_, each, value) in enumerate(rows):
      differences = each.differences(value, split)
      error = scipy.stats.sem(differences) if len(differences) > 1 else None
      filling = colour if len(differences) > 1 else 'white'
      panel.errorbar(np.mean(differences), i, xerr=error, fmt='o', color=colour, mfc=filling, markersize=4)
    panel.set(title=split)
  axes[0].set_yticks(range(len(rows)), [title for title, _, _ in rows])
  axes[0].invert_yaxis()
  axes[0].margins(y=0.01)
  figure.supxlabel('mean of five: points more than that of the reference', fontsize='medium')
  return figure


def samples_figure(runs: Sequence[Record]) -> Figure:
  """Draws the mean of five and pitch against the clips seen, a mark a run: a curve for each name in `SAMPLES`.

  Lines go through the means over the seeds that all lengths of a curve have.
  """
  figure = Figure((9, 3.2), layout='constrained')
  axes = figure.subplots(1, 3)
  curves = records.curves_of(runs)
  samples = sorted({run['samples'] for run in runs})
  panels = (
    ('mean of five, tuning, %', lambda run: run['mean_of_five']['tuning']),
    ('mean of five, test, %', lambda run: run['mean_of_five']['test']),
    ('pitch, test, %', lambda run: run['scores']['test'][records.PITCH]),
  )
  for panel, (title, score_of) in zip(axes, panels, strict=True):
    for i, (name, lengths) in enumerate(curves.items()):
      compared = records.of_common_seeds(list(lengths.values()))
      means = [np.mean([score_of(run) for run in of_n]) if of_n else np.nan for of_n in compared]  # NaN draws nothing.
      panel.plot(list(lengths), means, color=COLOURS[i % len(COLOURS)], label=name)
      for n, of_n in lengths.items():
        scores = [score_of(run) for run in of_n]
        panel.plot([n] * len(scores), scores, MARKERS[i % len(MARKERS)], color=COLOURS[i % len(COLOURS)], markersize=4)
    panel.set(xscale='log', xlabel='clips seen', title=title)
    panel.set_xticks(samples, [f'{n / 1_000:.3g}k' for n in samples])
    panel.minorticks_off()
  figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=len(curves))
  return figure


def cpu_time_figure(runs: Sequence[Record]) -> Figure:
  """Draws every run's mean of five, on tuning and on test, against the CPU-seconds of its training."""
  figure = Figure((9, 3.2), layout='constrained')
  axes = figure.subplots(1, 2)
  for panel, split in zip(axes, ('tuning', 'test'), strict=True):
    for i, (of_peer, label) in enumerate(((False, 'ours'), (True, "BYOL-A's objective"))):
      points = [
        (run['cpu_seconds'], run['mean_of_five'][split])
        for run in runs
        if split in run['mean_of_five'] and _is_of_peer(run) == of_peer
      ]
      if points:
        panel.plot(*zip(*points, strict=True), MARKERS[i], color=COLOURS[i], markersize=4, label=label)
    panel.set(xscale='log', xlabel='CPU-seconds of training', title=f'mean of five, {split}, %')
    panel.set_xticks((100, 200, 400, 800, 1_600, 3_200), ('100', '200', '400', '800', '1,600', '3,200'))
    panel.minorticks_off()
  axes[0].legend()
  return figure


def _is_of_peer(run: Record) -> bool:
  return run['settings'].get('objective.invariance_term') == 'prediction'


def health_figure(runs: Sequence[Record]) -> Figure:
  """Draws the health over steps, a panel a figure; a colour for each value of `WITHOUT`, or one for all runs."""
  figure = Figure((9, 2.8), layout='constrained')
  axes = figure.subplots(1, len(HEALTH))
  values = sorted({run['values'].get(WITHOUT, '') for run in runs}, key=lambda value: (value != 'none', value))
  for panel, (key, title) in zip(axes, HEALTH.items(), strict=True):
    for i, value in enumerate(values):
      for j, run in enumerate(run for run in runs if run['values'].get(WITHOUT, '') == value):
        _curve(panel, run['health'], key, i, _label(value) if j == 0 else None)
    panel.set(xlabel='step', title=title, ylim=(0, None))
  if values != ['']:
    axes[0].legend()
  return figure


def _curve(panel: Axes, health: Sequence[Mapping[str, float]], key: str, i: int, label: str | None) -> None:
  lines = [line for line in health if key in line]
  steps, values = ([line[name] for line in lines] for name in ('step', key))
  style = {'marker': MARKERS[i % len(MARKERS)], 'color': COLOURS[i % len(COLOURS)], 'markersize': 3}
  panel.plot(steps, values, label=label, **style)


def _label(value: str) -> str | None:
  return {'': None, 'none': 'all three terms'}.get(value, f'without {value}')
