"""Charts of how the embeddings fill their space."""

from collections.abc import Mapping
from typing import Any

from selfie_jax.evaluation.protocol import TRAINED, UNTRAINED
from selfie_jax.evaluation.reporting.charts.chart import MARKERS, NAMES, Chart

_LEAST_SINGULAR_VALUE = 1e-7  # Over the largest: smaller ones are float32's rounding.


def spectrum(health: Mapping[str, Any]) -> Chart:
  """The singular values of the embeddings, of the trained and the untrained encoder."""
  data = []
  for key, measured in _encoders(health):
    values = measured['spectrum']
    data.append(
      {
        'name': NAMES[key],
        'x': values['rank'],
        'y': [value if value > _LEAST_SINGULAR_VALUE else None for value in values['value']],
        'mode': 'lines',
        'line': {'color': MARKERS[key]['color'], 'width': 2.5, 'dash': 'solid' if key == TRAINED else 'dash'},
        'hovertemplate': 'number %{x}: %{y:.2g} of the largest<extra>' + NAMES[key] + '</extra>',
      }
    )
  layout = {
    'xaxis': {'title': {'text': 'number of the singular value'}, 'type': 'log', 'dtick': 1},
    'yaxis': {'title': {'text': 'over the largest'}, 'type': 'log'},
  }
  text = 'Both axes are logarithmic. The slower it falls, the more dimensions the embeddings fill.'
  return Chart('spectrum', 'Singular values of the embeddings', text, data, layout, 340, 'half')


def deviations(health: Mapping[str, Any]) -> Chart:
  """How much the dimensions vary, of the trained and the untrained encoder."""
  data = []
  for key, measured in _encoders(health):
    edges, counts = measured['std']['edges'], measured['std']['counts']
    data.append(
      {
        'name': NAMES[key],
        'x': edges,
        'y': [*counts, counts[-1]],
        'mode': 'lines',
        'line': {'color': MARKERS[key]['color'], 'width': 2, 'shape': 'hv'},
        'fill': 'tozeroy',
        'fillcolor': '--accent-soft' if key == TRAINED else '--muted-soft',
        'hovertemplate': 'from %{x:.3g}: %{y} dimensions<extra>' + NAMES[key] + '</extra>',
      }
    )
  layout = {
    'xaxis': {'title': {'text': 'standard deviation of a dimension over clips'}, 'rangemode': 'tozero'},
    'yaxis': {'title': {'text': 'dimensions'}, 'rangemode': 'tozero'},
  }
  return Chart('deviations', 'How much each dimension varies', 'None should lie at 0.', data, layout, 340, 'half')


def correlations(health: Mapping[str, Any]) -> list[Chart]:
  """A heat map an encoder of the correlations between dimensions."""
  charts = []
  for key, measured in reversed(_encoders(health)):
    matrix = measured['correlation']
    if not matrix:
      continue
    trace = {
      'type': 'heatmap',
      'z': matrix,
      'zmin': -1,
      'zmax': 1,
      'colorscale': [[0, '--negative'], [0.5, '--surface'], [1, '--accent']],
      'colorbar': {'title': {'text': 'r'}, 'tickvals': [-1, 0, 1]},
      'hovertemplate': 'r = %{z}<extra></extra>',
    }
    axis = {'showticklabels': False, 'showgrid': False, 'ticks': '', 'constrain': 'domain'}
    layout = {
      'xaxis': axis | {'title': {'text': 'dimension'}},
      'yaxis': axis | {'title': {'text': 'dimension'}, 'autorange': 'reversed', 'scaleanchor': 'x'},
    }
    text = (
      f'{len(matrix)} of the {measured["dimensions"]:,} dimensions, evenly chosen, clustered. '
      f'Over all of them the mean |r| is {measured["mean_correlation"]:.3f}.'
    )
    title = f'Correlation between dimensions, {NAMES[key]}'
    charts.append(Chart(f'correlation-{key}', title, text, [trace], layout, 400, 'half'))
  return charts


def _encoders(health: Mapping[str, Any]) -> list[tuple[str, Any]]:
  """Returns the untrained encoder, if there is one, and the trained one, which is drawn over it."""
  return [(key, health[key]) for key in (UNTRAINED, TRAINED) if key in health]
