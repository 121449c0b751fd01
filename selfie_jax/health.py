"""How healthy a space of representations is: measures of collapse, in NumPy and float64.

Small matrices on the host: training takes them of a few hundred clips now and then, an evaluation of a task's clips.
"""

import numpy as np

_DEAD_STD = 1e-4  # Of the largest standard deviation: a dimension below carries nothing.


def singular_values(x: np.ndarray) -> np.ndarray:
  """Returns the singular values of `x` (n, d), uncentred as RankMe takes them: (min(n, d),), the largest first."""
  return np.linalg.svd(x.astype(np.float64), compute_uv=False)


def rankme(values: np.ndarray) -> float:
  """The exponential of the Shannon entropy of the singular values over their sum: between 1 and their number.

  RankMe (Garrido et al., ICML 2023, arXiv 2210.02885), equation 1, its epsilon included.

  Args:
    values: from `singular_values`.

  Returns:
    0 if all are 0: all representations are.
  """
  total = values.sum()
  if total <= 0:
    return 0.0
  p = values / total + 1e-7
  return float(np.exp(-(p * np.log(p)).sum()))


def unit_norm(x: np.ndarray) -> np.ndarray:
  """Returns the rows of `x` (n, d) scaled to the norm 1, as float64; a row of zeros stays one."""
  x = x.astype(np.float64)
  norms = np.linalg.norm(x, axis=1, keepdims=True)
  return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


def alignment(x: np.ndarray, y: np.ndarray) -> float:
  """Mean of |x - y|^2 over the pairs of two views' representations on the unit sphere: 0 is best, 2 is chance.

  Wang and Isola (ICML 2020, arXiv 2005.10242), equation 1 with alpha = 2.

  Args:
    x: (n, d).
    y: (n, d), row for row.
  """
  return float(np.square(unit_norm(x) - unit_norm(y)).sum(axis=1).mean())


def uniformity(x: np.ndarray) -> float:
  """Logarithm of the mean over pairs of exp(-2 |x_i - x_j|^2) on the unit sphere: the lower, the more spread out.

  Wang and Isola (ICML 2020), equation 2 with t = 2, over the pairs i < j as in their published code.

  Args:
    x: (n, d), n at least 2.
  """
  x = unit_norm(x)
  squared_distances = np.maximum(2.0 - 2.0 * (x @ x.T), 0.0)[np.triu_indices(len(x), 1)]
  return float(np.log(np.exp(-2.0 * squared_distances).mean()))


def correlation(x: np.ndarray) -> np.ndarray:
  """The d x d matrix of Pearson's correlations between the dimensions of `x` (n, d); 0 with one that is constant."""
  x = x.astype(np.float64)
  x -= x.mean(axis=0)
  norms = np.linalg.norm(x, axis=0)
  x = np.divide(x, norms, out=np.zeros_like(x), where=norms > np.finfo(np.float32).eps * max(norms.max(), 1e-30))
  return x.T @ x


def mean_correlation(matrix: np.ndarray) -> float:
  """Mean of the absolute values off the diagonal of a correlation matrix; 0 if there is one dimension only."""
  d = len(matrix)
  return float((np.abs(matrix).sum() - np.abs(np.diagonal(matrix)).sum()) / max(d * (d - 1), 1))


def num_dead(stds: np.ndarray) -> int:
  """Number of dimensions whose standard deviation is next to nothing beside the largest."""
  return int((stds <= _DEAD_STD * stds.max()).sum())


def summarize(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
  """Returns what a log has of two views' representations, each (n, d), by metric.

  Returns:
    To six digits: `rankme` (mean of the two views), `alignment`, `uniformity` (mean of the two), and of the first view
    `representation_std_min`, `representation_std_median` and `representation_std_max` (over the dimensions),
    `dead_dimensions`, and `mean_correlation`.
  """
  stds = x.astype(np.float64).std(axis=0)
  figures = {
    'rankme': np.mean([rankme(singular_values(view)) for view in (x, y)]),
    'alignment': alignment(x, y),
    'uniformity': np.mean([uniformity(view) for view in (x, y)]),
    'representation_std_min': stds.min(),
    'representation_std_median': np.median(stds),
    'representation_std_max': stds.max(),
    'dead_dimensions': num_dead(stds),
    'mean_correlation': mean_correlation(correlation(x)),
  }
  return {name: float(f'{value:.6g}') for name, value in figures.items()}


def thinned(matrix: np.ndarray, most: int = 128) -> np.ndarray:
  """Returns the rows and columns of a d x d matrix at `most` evenly spaced indices, all of them if d is less."""
  index = np.linspace(0, len(matrix) - 1, min(most, len(matrix))).round().astype(int)
  return matrix[np.ix_(index, index)]
