"""The page of curves that `tests.benchmarks.growth` writes: one file, which needs no network."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

if TYPE_CHECKING:
  from tests.benchmarks.growth import Curve

# Okabe and Ito's colours, which people with any kind of colour vision tell apart, and a marker of its own for each.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00')
MARKERS = ('circle', 'square', 'diamond', 'triangle-up', 'x')
COLUMNS = 2
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def write_plot(curves: 'Sequence[Curve]', path: Path) -> None:
  """Writes a panel for each curve: both axes logarithmic, costs relative to those at its smallest size."""
  rows = -(-len(curves) // COLUMNS)
  titles = [f'by {curve.name}' for curve in curves]
  figure = make_subplots(rows=rows, cols=COLUMNS, subplot_titles=titles, horizontal_spacing=0.08, vertical_spacing=0.09)
  for panel, curve in enumerate(curves):
    place = {'row': panel // COLUMNS + 1, 'col': panel % COLUMNS + 1}
    legend = f'legend{panel + 1}'
    for i, (name, costs) in enumerate(curve.costs.items()):
      slope = np.polyfit(np.log(curve.sizes), np.log(costs), 1)[0]
      figure.add_trace(
        go.Scatter(
          x=curve.sizes,
          y=np.asarray(costs) / costs[0],
          customdata=costs,
          hovertemplate='%{x:,}: %{customdata:.4g} (%{y:.3g} times)',
          name=f'{name}: exponent {slope:.2f}',
          mode='lines+markers',
          line_color=COLOURS[i],
          marker={'symbol': MARKERS[i], 'size': 9},
          legend=legend,
        ),
        **place,
      )
    figure.update_xaxes(
      showgrid=True, type='log', tickvals=curve.sizes, ticktext=[f'{size:,}' for size in curve.sizes], **place
    )
    # A flat curve shall look flat: the axis has at least a factor of 4, and more around it.
    relative = np.concatenate([np.asarray(costs) / costs[0] for costs in curve.costs.values()])
    lowest, highest = min(0.5, relative.min()) / 1.5, max(2.0, relative.max()) * 1.5
    # Above the curves there is room for their names.
    room = (highest / lowest) ** (0.09 * len(curve.costs))
    ticks = [value for value in TICKS if lowest <= value <= highest]
    names = [f'{value:g}' for value in ticks]
    scale = {'type': 'log', 'range': np.log10([lowest, highest * room]), 'tickvals': ticks, 'ticktext': names}
    figure.update_yaxes(scale, showgrid=True, **place)
    axes = figure.get_subplot(place['row'], place['col'])
    corner = {
      'x': axes.xaxis.domain[0] + 0.01,
      'y': axes.yaxis.domain[1] - 0.01,
      'xanchor': 'left',
      'yanchor': 'top',
      'font_size': 12,
    }
    figure.update_layout({legend: corner | {'bgcolor': 'rgba(255,255,255,0.7)'}})
  figure.update_layout(
    title='What a train step costs, over its cost at the smallest size',
    template='simple_white',
    width=1_200,
    height=110 + 420 * rows,
    margin={'l': 60, 'r': 30, 't': 100, 'b': 50},
    font_size=13,
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.write_html(path, include_plotlyjs=True)
