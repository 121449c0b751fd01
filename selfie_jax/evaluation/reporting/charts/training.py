"""Charts of what a run wrote while it was trained."""

from collections.abc import Mapping, Sequence

from selfie_jax.config import Objective
from selfie_jax.evaluation.reporting.charts.chart import PALETTE, Chart

_METRICS = {  # Of metrics.jsonl: what it is, on which axis.
  'effective_rank': ('Effective rank of the embeddings in a batch', 'effective rank'),
  'embedding_std': ("Standard deviation of the embeddings' dimensions", 'mean over dimensions'),
  'rankme': ('RankMe of the representation', 'effective rank'),
  'alignment': ('Alignment of two views: lower is closer', 'squared distance'),
  'uniformity': ('Uniformity: lower is more spread out', 'log potential'),
  'mean_correlation': ('Correlation between dimensions', 'mean |r|'),
  'representation_std_median': ("Standard deviation of the representation's dimensions", 'median'),
  'dead_dimensions': ('Dimensions that do not vary', 'dimensions'),
  'gradient_norm': ('Norm of the gradient', 'norm'),
  'parameter_norm': ('Norm of the parameters', 'norm'),
  'learning_rate': ('Learning rate', 'rate'),
  'clips_per_second': ('Throughput', 'clips a second'),
}


def loss(rows: Sequence[Mapping[str, float]], weights: Objective) -> Chart | None:
  """The loss and its three weighted terms over the steps; None if there are no such metrics."""
  rows = [row for row in rows if {'loss', 'invariance', 'diversity', 'decorrelation'} <= row.keys()]
  if not rows:
    return None
  steps = [row['step'] for row in rows]
  lines = [('loss', 1.0, '--ink', 'solid')]
  for term, colour, dash in zip(('invariance', 'diversity', 'decorrelation'), PALETTE, ('solid', 'dash', 'dot')):
    lines.append((term, getattr(weights, term), colour, dash))
  data = [
    {
      'name': name if name == 'loss' else f'{weight:g} × {name}',
      'x': steps,
      'y': [weight * row[name] for row in rows],
      'mode': 'lines',
      'line': {'color': colour, 'dash': dash, 'width': 2.5 if name == 'loss' else 2},
      'hovertemplate': '%{y:.4g}',
    }
    for name, weight, colour, dash in lines
  ]
  layout = {
    'xaxis': {'title': {'text': 'step'}},
    'yaxis': {'title': {'text': 'loss'}, 'rangemode': 'tozero'},
    'hovermode': 'x unified',
  }
  return Chart('loss', 'The loss and the three terms it is the sum of', 'In training batches.', data, layout, 380)


def training_metrics(rows: Sequence[Mapping[str, float]]) -> list[Chart]:
  """A small chart of each metric that the run has written."""
  charts = []
  for key, (title, unit) in _METRICS.items():
    found = [(row['step'], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
    if len(found) < 2:
      continue
    steps, values = zip(*found, strict=True)
    trace = {
      'x': list(steps),
      'y': list(values),
      'mode': 'lines',
      'line': {'color': '--accent', 'width': 2},
      'hovertemplate': 'step %{x:,}: <b>%{y:.4g}</b><extra></extra>',
    }
    layout = {
      'xaxis': {'title': {'text': 'step'}},
      'yaxis': {'title': {'text': unit}, 'rangemode': 'normal' if key == 'uniformity' else 'tozero'},
      'showlegend': False,
    }
    charts.append(Chart(f'metric-{key}', title, '', [trace], layout, 230, 'small'))
  return charts
