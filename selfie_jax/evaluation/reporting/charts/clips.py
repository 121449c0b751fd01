"""Charts of one task's clips: what is taken for what, and where they lie."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfie_jax.evaluation.reporting.charts.chart import PALETTE, Chart, plain, short
from selfie_jax.evaluation.reporting.exhibits import Exhibit

_MOST_LEGEND_ENTRIES = 20
_MOST_NAMED_CLASSES = 60
_MOST_TICKS = 44
_MOST_ANNOTATED_CLASSES = 12


def confusion(name: str, task: Mapping[str, Any]) -> Chart | None:
  """The confusion matrix, each row in percent of its clips; None if results.json has none."""
  if task['confusion'] is None:
    return None
  counts = np.array(task['confusion'], np.float64)
  totals = counts.sum(1, keepdims=True)
  percent = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
  classes = [plain(label) for label in task['classes']]
  every = math.ceil(len(classes) / _MOST_TICKS)
  axis = {
    'type': 'category',
    'tickvals': classes[::every],
    'ticktext': [plain(short(label)) for label in task['classes'][::every]],
    'showgrid': False,
    'ticks': '',
    'tickfont': {'size': 11 if len(classes) <= _MOST_LEGEND_ENTRIES else 9, 'color': '--muted'},
  }
  trace = {
    'type': 'heatmap',
    'x': classes,
    'y': classes,
    'z': percent.round(1).tolist(),
    'zmin': 0,
    'zmax': 100,
    'xgap': 1 if len(classes) <= _MOST_TICKS else 0,
    'ygap': 1 if len(classes) <= _MOST_TICKS else 0,
    'colorscale': [[0, '--heat'], [1, '--accent']],
    'showscale': len(classes) > _MOST_ANNOTATED_CLASSES,
    'colorbar': {'ticksuffix': ' %', 'tickvals': [0, 50, 100]},
    'hovertemplate': '%{y}<br>taken for %{x}: <b>%{z:.0f} %</b><extra></extra>',
  }
  if len(classes) <= _MOST_ANNOTATED_CLASSES:
    trace |= {'texttemplate': '%{z:.0f}', 'textfont': {'size': 11}}
  layout = {
    'xaxis': axis
    | {'title': {'text': 'taken for'}, 'tickangle': -50 if len(classes) <= _MOST_ANNOTATED_CLASSES else -90},
    'yaxis': axis | {'title': {'text': 'label'}, 'autorange': 'reversed'},
  }
  height = max(400, min(760, 140 + 22 * len(classes)))
  text = "Each row: where a class's test clips went, in %."
  return Chart(f'confusion-{name}', 'What is taken for what', text, [trace], layout, height, 'half')


def embedding_map(name: str, exhibit: Exhibit) -> Chart | None:
  """Where the test clips lie; a point's `customdata` is file, label, prediction and number of its sound, or -1."""
  if not exhibit.points.size:
    return None
  points = exhibit.points - exhibit.points.mean(0)
  points /= max(np.abs(points).max(), 1e-9)
  kinds = np.array(exhibit.kinds)
  names = sorted(set(exhibit.kinds))
  sounds = {clip.row: number for number, clip in enumerate(exhibit.clips)}
  legend = 1 < len(names) <= _MOST_LEGEND_ENTRIES
  data = []
  for i, kind in enumerate(names):
    rows = np.flatnonzero(kinds == kind).tolist()
    rows.sort(key=lambda row: row in sounds)  # Large points come last, on top.
    wrong = [exhibit.is_wrong(row) for row in rows]
    colour = PALETTE[i] if len(names) <= len(PALETTE) else f'hue:{round(360 * i / len(names))}'
    data.append(
      {
        'legendgroup': kind,
        'showlegend': False,
        'x': points[rows, 0].round(3).tolist(),
        'y': points[rows, 1].round(3).tolist(),
        'mode': 'markers',
        'marker': {
          'color': colour,
          'size': [13 if row in sounds else 7 for row in rows],
          'symbol': ['circle-open' if missed else 'circle' for missed in wrong],
          'line': {'width': [2.5 if row in sounds else 1.5 if missed else 0 for row, missed in zip(rows, wrong)]},
          'opacity': 0.85,
        },
        'customdata': [
          [
            plain(exhibit.files[row]),
            plain(exhibit.labels[row]) or 'no label',
            _verdict(exhibit, row),
            sounds.get(row, -1),
          ]
          for row in rows
        ],
        'hovertemplate': '<b>%{customdata[1]}</b>%{customdata[2]}<br>%{customdata[0]}<extra></extra>',
      }
    )
    if legend:  # A trace of its own: else it would look like the first point, which may be a ring.
      data.append(
        {
          'name': plain(short(kind)),
          'legendgroup': kind,
          'x': [None],
          'y': [None],
          'mode': 'markers',
          'marker': {'color': colour, 'size': 7, 'opacity': 0.85},
        }
      )
  axis = {'visible': False}
  layout = {
    'xaxis': axis,
    'yaxis': axis,
    'showlegend': legend,
    'annotations': _class_names(points, kinds, names) if not legend and len(names) <= _MOST_NAMED_CLASSES else [],
  }
  rings = (
    ' The colour says how many labels a clip has.'
    if exhibit.predicted is None
    else ' A ring is a clip that was taken for another class.'
  )
  text = f't-SNE of {len(points):,} test clips.{rings} Click a large point to hear it.'
  return Chart(f'map-{name}', 'Where the test clips lie', text, data, layout, 480, 'half')


def _verdict(exhibit: Exhibit, row: int) -> str:
  if exhibit.predicted is None:
    return ''
  return f', taken for {plain(exhibit.predicted[row])}' if exhibit.is_wrong(row) else ', read right'


def _class_names(points: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
  """Returns a name in place for each class, where a legend would be too long."""
  centres = [np.median(points[labels == label], axis=0) for label in names]
  return [
    {'x': float(x), 'y': float(y), 'text': plain(short(label)), 'showarrow': False, 'font': {'size': 10}}
    for label, (x, y) in zip(names, centres, strict=True)
  ]
