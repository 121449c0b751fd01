"""The objective and its gradient in float64 NumPy, derived by hand and checked against finite differences."""

import numpy as np


def loss_and_gradients(z1, z2, weights=(25.0, 25.0, 1.0), num_groups=1):
  """Returns (loss, dloss/dz1, dloss/dz2) for (n, d) embeddings; weights: invariance, diversity, decorrelation."""
  z1, z2 = np.asarray(z1, np.float64), np.asarray(z2, np.float64)
  difference = z1 - z2
  loss = weights[0] * np.mean(difference**2)
  gradients = [weights[0] * sign * 2 * difference / difference.size for sign in (1, -1)]
  for view, z in enumerate((z1, z2)):
    hinge, hinge_gradient = _hinge(z, num_groups)
    energy, energy_gradient = _covariance(z)
    loss += weights[1] * hinge / 2 + weights[2] * energy
    gradients[view] += weights[1] * hinge_gradient / 2 + weights[2] * energy_gradient
  return loss, *gradients


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
  covariance = centred.T @ centred / (n - 1)
  off_diagonal = covariance - np.diag(np.diag(covariance))
  return (off_diagonal**2).sum() / d, 4 * centred @ off_diagonal / (n - 1) / d
