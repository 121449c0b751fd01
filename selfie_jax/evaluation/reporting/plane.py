"""Embeddings laid out in two dimensions."""

import numpy as np

FEWEST_POINTS = 4  # That t-SNE can lay out.
MOST_POINTS = 2_000  # t-SNE takes minutes for more, and nobody could tell them apart.


def chosen_rows(count: int) -> np.ndarray:
  """Returns which of `count` clips are laid out: all, a random 2,000 of more, or none where they are too few."""
  if count < FEWEST_POINTS:
    return np.arange(0)
  if count <= MOST_POINTS:
    return np.arange(count)
  return np.sort(np.random.default_rng(0).choice(count, MOST_POINTS, replace=False))


def to_plane(embeddings: np.ndarray) -> np.ndarray:
  """(n, d) to (n, 2): t-SNE of the 50 leading principal components, the same for the same input."""
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
