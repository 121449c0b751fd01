"""The objective and its gradient in float64 NumPy: gradients by hand, which a test checks by finite differences."""

import numpy as np


def loss_and_gradients(z1, z2, config, num_groups=1):
  """Returns (loss, dloss/dz1, dloss/dz2) for (n, d) embeddings and the terms and weights of `config`."""
  loss, gradients = 0.0, [0.0, 0.0]
  for weight, (value, *parts) in zip(
    (config.invariance, config.diversity, config.decorrelation), terms(z1, z2, config, num_groups), strict=True
  ):
    loss += weight * value
    gradients = [g + weight * part for g, part in zip(gradients, parts, strict=True)]
  return loss, *gradients


def terms(z1, z2, config, num_groups=1):
  """Returns (value, gradient, gradient) of each of invariance, diversity, decorrelation."""
  raw = [np.asarray(z, np.float64) for z in (z1, z2)]
  views, d = raw, raw[0].shape[1]
  if config.normalize:
    views = [np.sqrt(d) * _unit(z) for z in raw]
  if config.variance_statistics == 'global':
    num_groups = 1
  diversity = {
    'variance': lambda z: _hinge(z, num_groups),
    'uniformity': _on_the_sphere(_uniformity),
    'hyperspherical_energy': _on_the_sphere(lambda x: _hyperspherical_energy(x, config.energy_exponent)),
    'coding_rate': _on_the_sphere(_coding_rate),
  }[config.diversity_term]
  invariance = {'mean_squared_error': _mean_squared_error, 'cross_correlation': _cross_correlation_diagonal}
  decorrelation = {
    'covariance': _of_both_views(_covariance, 1),
    'debiased_covariance': _of_both_views(_debiased_covariance, 1),
    'cross_correlation': _cross_correlation_off_diagonal,
  }
  results = [
    invariance[config.invariance_term](*views),
    _of_both_views(diversity, 1 / 2)(*views),
    decorrelation[config.decorrelation_term](*views),
  ]
  if config.normalize:
    scale = np.sqrt(d)
    results = [(f, *(_unit_backward(z, scale * g) for z, g in zip(raw, gs, strict=True))) for f, *gs in results]
  return results


def embedding_std(z1, z2):
  return np.mean([np.std(np.asarray(z, np.float64), axis=0, ddof=1) for z in (z1, z2)])


def effective_rank(z1, z2):
  """The participation ratio (sum of eigenvalues)^2 / sum of their squares: traces of the covariance and its square."""
  ranks = []
  for z in (z1, z2):
    covariance = np.atleast_2d(np.cov(np.asarray(z, np.float64), rowvar=False))
    ranks.append(np.trace(covariance) ** 2 / (covariance**2).sum())
  return np.mean(ranks)


def _of_both_views(term, weight):
  def function(z1, z2):
    (f1, g1), (f2, g2) = term(z1), term(z2)
    return weight * (f1 + f2), weight * g1, weight * g2

  return function


def _mean_squared_error(z1, z2):
  difference = z1 - z2
  gradient = 2 * difference / difference.size
  return np.mean(difference**2), gradient, -gradient


def _hinge(z, num_groups):
  # s = sqrt(|k|^2 / (m - 1) + eps) for a centred column k of m rows: ds/dk = k / ((m - 1) s).
  loss, gradient = 0.0, np.zeros_like(z)
  d = z.shape[1]
  for rows in np.split(np.arange(len(z)), num_groups):
    centred = z[rows] - z[rows].mean(0)
    std = np.sqrt((centred**2).sum(0) / (len(rows) - 1) + 1e-4)
    loss += np.maximum(1 - std, 0).sum() / (num_groups * d)
    gradient[rows] = -np.where(std < 1, centred / ((len(rows) - 1) * std), 0) / (num_groups * d)
  return loss, gradient


def _covariance(z):
  # f = sum_{i != j} C_ij^2, C = K'K / (n - 1): df/dK = 4 K offdiag(C) / (n - 1), whose columns have mean zero already.
  n, d = z.shape
  centred = z - z.mean(0)
  off_diagonal = _off_diagonal(centred.T @ centred / (n - 1))
  return (off_diagonal**2).sum() / d, 4 * centred @ off_diagonal / (n - 1) / d


def _debiased_covariance(z):
  # f = (sum_{a != b} S_ab^2 - sum_i p(k_i)) / (n (n - 1)), S = K'K, p(k) = |k|^4 - sum_a k_a^4, the pairs of a row with
  # itself: df/dK = 4 (K offdiag(S) - |k|^2 k + k^3) / (n (n - 1)), less its mean over the rows.
  n, d = z.shape
  centred = z - z.mean(0)
  squares = (centred**2).sum(1, keepdims=True)
  off_diagonal = _off_diagonal(centred.T @ centred)
  gradient = 4 * (centred @ off_diagonal - squares * centred + centred**3)
  value = (off_diagonal**2).sum() - ((squares**2).sum() - (centred**4).sum())
  return value / (n * (n - 1)) / d, (gradient - gradient.mean(0)) / (n * (n - 1)) / d


def prediction(pairs):
  """Returns 2 - 2 cos of (n, d) predictions and targets, the mean over all pairs, and its gradients to the former."""
  losses, gradients = [], []
  for predictions, targets in pairs:
    cos = (_unit(predictions) * _unit(targets)).sum(1)
    losses.append((2 - 2 * cos).mean())
    gradients.append(_unit_backward(predictions, -2 * _unit(targets)) / len(targets) / len(pairs))
  return np.mean(losses), gradients


def _off_diagonal(matrix):
  return matrix - np.diag(np.diag(matrix))


def _cross_correlation_diagonal(z1, z2):
  (a, backward_a), (b, backward_b) = _standardise(z1), _standardise(z2)
  c = (a * b).mean(0)
  gradient = -2 * (1 - c) / len(a)
  return ((1 - c) ** 2).sum(), backward_a(b * gradient), backward_b(a * gradient)


def _cross_correlation_off_diagonal(z1, z2):
  # c = A'B / n and f = sum_{i != j} c_ij^2: df/dA = 2 B offdiag(c)' / n, df/dB = 2 A offdiag(c) / n.
  (a, backward_a), (b, backward_b) = _standardise(z1), _standardise(z2)
  off_diagonal = _off_diagonal(a.T @ b / len(a))
  gradient = 2 * off_diagonal / len(a)
  return (off_diagonal**2).sum(), backward_a(b @ gradient.T), backward_b(a @ gradient)


def _standardise(z):
  # y = k / s, s = sqrt(mean(k^2) + eps): dk = (g - y mean(g y)) / s; then the mean of dk is taken away.
  centred = z - z.mean(0)
  std = np.sqrt((centred**2).mean(0) + 1e-5)
  y = centred / std

  def backward(g):
    dk = (g - y * (g * y).mean(0)) / std
    return dk - dk.mean(0)

  return y, backward


def _on_the_sphere(term):
  def function(z):
    value, gradient = term(_unit(z))
    return value, _unit_backward(z, gradient)

  return function


def _norm(z):
  norm = np.sqrt((z**2).sum(1, keepdims=True))
  return np.where(norm > 0, norm, 1)


def _unit(z):
  return z / _norm(z)


def _unit_backward(z, g):
  # x = z / |z|: dz = (g - x (x . g)) / |z|; a row of zeros stays zero.
  x = _unit(z)
  dz = (g - x * (x * g).sum(1, keepdims=True)) / _norm(z)
  return np.where((z != 0).any(1, keepdims=True), dz, 0)


def _mean_over_pairs(x, potential):
  # potential(squared distance) returns its value and derivative; each pair counts once in each of its two orders.
  n = len(x)
  difference = x[:, None] - x
  value, derivative = potential((difference**2).sum(-1))
  others = (1 - np.eye(n)) / (n * (n - 1))
  return (value * others).sum(), 4 * ((derivative * others)[:, :, None] * difference).sum(1)


def _uniformity(x):
  def potential(squared_distance):
    closeness = np.exp(-2 * squared_distance)
    return closeness, -2 * closeness

  mean, gradient = _mean_over_pairs(x, potential)
  return np.log(mean), gradient / mean


def _hyperspherical_energy(x, s):
  def potential(squared_distance):
    r = np.maximum(squared_distance, 1e-6)
    value, derivative = (r ** (-s / 2), -s / 2 * r ** (-s / 2 - 1)) if s else (-np.log(r) / 2, -1 / (2 * r))
    return value, np.where(squared_distance > 1e-6, derivative, 0)

  return _mean_over_pairs(x, potential)


def _coding_rate(x):
  # f = -1/2 logdet(M), M = I + a X'X: df/dX = -a X M^-1.
  n, d = x.shape
  a = d / (n * 0.2)
  m = np.eye(d) + a * x.T @ x
  return -np.linalg.slogdet(m)[1] / 2, -a * x @ np.linalg.inv(m)
