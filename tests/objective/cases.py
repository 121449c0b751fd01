"""Embeddings and objectives that the tests share."""

import dataclasses

import numpy as np

from selfie_jax.config import PRESETS, Objective
from selfie_jax.objective.off_diagonal import MAX_REPLICATED_WIDTH

# Predictions need networks: see test_prediction.py.
OF_TWO_VIEWS = {name: Objective(**settings) for name, settings in PRESETS.items() if name != 'byol_a'}
# Every other term at least once: the presets have no hyperspherical energy, coding rate or debiased covariance.
OBJECTIVES = OF_TWO_VIEWS | {
  'log_energy': Objective(diversity_term='hyperspherical_energy', diversity=1.0),
  'energy': Objective(diversity_term='hyperspherical_energy', energy_exponent=2.0, diversity=1.0),
  'debiased': Objective(decorrelation_term='debiased_covariance', variance_statistics='global'),
  'coding_rate': Objective(diversity_term='coding_rate', diversity=1.0, normalize=True, decorrelation=0.04),
}


def views(n, d, scale=1.0, seed=0):
  """Two correlated views (n, d), whose dimensions are correlated too and have means of their own."""
  rng = np.random.default_rng(seed)
  mixing = rng.standard_normal((d, d)) / np.sqrt(d)
  z1 = rng.standard_normal((n, d)) @ mixing + rng.standard_normal(d)
  z2 = z1 + 0.3 * rng.standard_normal((n, d))
  return np.float32(scale * z1), np.float32(scale * z2)


@dataclasses.dataclass(frozen=True)
class Case:
  """An objective and a batch for it, by a name that tells the two."""

  objective_name: str
  n: int
  d: int
  num_groups: int = 0  # Of the variance; 0 stands for one a device.
  max_replicated_width: int = MAX_REPLICATED_WIDTH
  degenerate_scale: float = 0.0  # Where not 0: with equal rows and a constant dimension, at this scale.

  @property
  def name(self):
    groups = f'_{self.num_groups}groups' if self.num_groups else ''
    degenerate = f'_degenerate{self.degenerate_scale:g}' if self.degenerate_scale else ''
    return f'{self.objective_name}_{self.n}x{self.d}{groups}{degenerate}'

  @property
  def objective(self):
    return OBJECTIVES[self.objective_name]

  def groups_on(self, num_devices):
    return self.num_groups or num_devices

  def views(self):
    if not self.degenerate_scale:
      return views(self.n, self.d, seed=self.n + self.d)
    both = views(self.n, self.d, self.degenerate_scale, seed=self.n + self.d)
    for z in both:
      z[1:4] = z[0]
      z[:, 2] = 0.25
    return both

  def seen(self):
    """The views as the terms see them."""
    z = np.float64(self.views())
    return np.sqrt(self.d) * z / np.linalg.norm(z, axis=-1, keepdims=True) if self.objective.normalize else z


# With a bound of 8 columns on what is summed whole, so that 21 go block by block.
SCATTERED_CASES = (
  Case('selfie', 24, 21, max_replicated_width=8),
  Case('barlow_twins', 24, 21, max_replicated_width=8),
)
# More samples than dimensions, and fewer.
PRESET_CASES = (*(Case(name, 48, 20) for name in OF_TWO_VIEWS), *(Case(name, 16, 25) for name in OF_TWO_VIEWS))
# Those for every number of devices: each preset and the debiased covariance, and both shapes.
COUNTED_CASES = (
  Case('selfie', 48, 20),
  Case('selfie', 16, 25),
  Case('vicreg', 16, 25),
  Case('barlow_twins', 48, 20),
  Case('uniformity_covariance', 48, 20),
  Case('debiased', 16, 25),
)
OTHER_CASES = (
  Case('debiased', 16, 25),
  *(Case(name, *shape) for name in ('log_energy', 'coding_rate') for shape in ((48, 20), (16, 25))),
  *(Case(name, 8, 5) for name in ('vicreg', 'uniformity_covariance')),  # One sample a device.
  *SCATTERED_CASES,
  *(Case('selfie', *shape, degenerate_scale=scale) for shape in ((48, 20), (16, 25)) for scale in (1e-3, 1e4)),
  *(Case(name, 48, 20, degenerate_scale=1.0) for name in ('vicreg', 'barlow_twins', 'uniformity_covariance')),
  *(Case('selfie', 48, 20, num_groups) for num_groups in (3, 4)),  # Kept from a run on another number of devices.
  Case('selfie', 2056, 2056),  # Above the real bound.
)
PROCESS_CASES = (
  *(Case(name, 24, 10) for name in ('selfie', 'barlow_twins', 'uniformity_covariance')),
  Case('selfie', 8, 12),
  SCATTERED_CASES[0],
  Case('selfie', 24, 10, degenerate_scale=1e3),
)
