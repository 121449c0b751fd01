"""The study's pictures, SVG files without a date: score against samples and CPU time, health over time, collapse."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
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
  drawn = []
  with matplotlib.rc_context(_STYLE):
    for name, runs, figure_of in (
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
