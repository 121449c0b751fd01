"""Pictures of a run: how its loss terms went, and where its embeddings lie."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from selfie_jax.config import Objective
from selfie_jax.files import write_atomically

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_STYLE = {
  'savefig.dpi': 150,
  'font.size': 9,
  'axes.titlesize': 10,
  'axes.titlelocation': 'left',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'grid.alpha': 0.25,
  'legend.frameon': False,
}
_FEWEST_POINTS = 4  # That t-SNE can lay out.
_MOST_POINTS = 2_000  # t-SNE takes minutes for more, and nobody could tell them apart.
_MOST_LEGEND_ENTRIES = 20


def draw_training(metrics: epath.Path, weights: Objective, output: epath.Path) -> None:
  """Draws the weighted loss terms and the effective rank over the steps in metrics.jsonl.

  Where it has none, there is no picture: an old one goes.
  """
  rows = _read_metrics(metrics)
  if not rows:
    output.unlink(missing_ok=True)
    return
  from matplotlib import rc_context  # Slow to import.
  from matplotlib.figure import Figure  # Not pyplot: it keeps global state and looks for a display.

  steps = [row['step'] for row in rows]
  with rc_context(_STYLE):
    figure = Figure(figsize=(7, 6), layout='constrained')
    loss, rank = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    loss.plot(steps, [row['loss'] for row in rows], color='0.2', linewidth=2, label='loss')
    for name in ('invariance', 'diversity', 'decorrelation'):
      weight = getattr(weights, name)
      loss.plot(steps, [weight * row[name] for row in rows], label=f'{weight:g} x {name}')
    loss.set(title='Loss and the three terms it is the sum of', ylim=(0, None))
    loss.legend()
    rank.plot(steps, [row['effective_rank'] for row in rows], color='tab:purple')
    rank.set(title='Effective rank of the embeddings in a batch', xlabel='step', ylim=(0, None))
    for axes in (loss, rank):
      axes.grid(True)
    _save(figure, output)


def _read_metrics(path: epath.Path) -> list[dict[str, float]]:
  """Returns the finished lines: a run that was killed may have left half a line at the end."""
  rows = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      rows.append(json.loads(line))
    except ValueError:
      continue
  return rows


def draw_embeddings(
  embeddings: np.ndarray, labels: np.ndarray, classes: Sequence[str], title: str, output: epath.Path
) -> None:
  """Draws embeddings in two dimensions (t-SNE of the 50 leading principal components), coloured by label.

  Of too few points for it there is no picture: an old one goes.

  Args:
    embeddings: (n, d); of more than 2,000 a random 2,000 are drawn.
    labels: (n,) numbers into `classes`.
    classes: their names.
    title: of the picture.
    output: a PNG.
  """
  if len(embeddings) < _FEWEST_POINTS:
    output.unlink(missing_ok=True)
    return
  from matplotlib import rc_context
  from matplotlib.figure import Figure

  if len(embeddings) > _MOST_POINTS:
    rows = np.random.default_rng(0).choice(len(embeddings), _MOST_POINTS, replace=False)
    embeddings, labels = embeddings[rows], labels[rows]
  points = _to_plane(embeddings)
  with rc_context(_STYLE):
    figure = Figure(figsize=(7, 5.5), layout='constrained')
    axes = figure.subplots()
    _scatter(axes, points, labels, classes)
    axes.set(title=f'{title}\n{len(points):,} clips, t-SNE', xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    _save(figure, output)


def _to_plane(embeddings: np.ndarray) -> np.ndarray:
  """(n, d) to (n, 2), the same for the same input."""
  from sklearn.decomposition import PCA
  from sklearn.manifold import TSNE
  from sklearn.preprocessing import StandardScaler
  from threadpoolctl import threadpool_limits

  scaled = StandardScaler().fit_transform(embeddings.astype(np.float64))
  # With threads, t-SNE of so few points mostly spins at barriers: five times the work, and far worse on a busy machine.
  with threadpool_limits(1):
    components = PCA(min(50, *scaled.shape), random_state=0).fit_transform(scaled)
    tsne = TSNE(perplexity=min(30, (len(components) - 1) / 3), init='random', random_state=0)
    return tsne.fit_transform(components)


def _scatter(axes: 'Axes', points: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
  """Draws points coloured by label, with a legend, or with the names in place where a legend would be too long."""
  from matplotlib import colormaps

  present = np.unique(labels)
  colours = colormaps['tab10' if len(present) <= 10 else 'tab20'].colors
  legend = len(present) <= _MOST_LEGEND_ENTRIES
  for i, label in enumerate(present):
    mine = points[labels == label]
    axes.scatter(*mine.T, s=14, alpha=0.8, linewidths=0, color=colours[i % len(colours)], label=classes[label])
    if not legend:
      axes.annotate(classes[label], np.median(mine, axis=0), ha='center', va='center', fontsize=6)
  if legend:
    axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), markerscale=1.5)


def _save(figure: 'Figure', output: epath.Path) -> None:
  with write_atomically(output) as file:
    figure.savefig(file, format='png')
