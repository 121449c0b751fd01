"""The study's cells: what is run, as a table.

A cell is configs/public_small.py with some settings overridden, and it is run with each of its seeds. It stands in the
table of every factor that `values` names, under the value given there, so that one run can be the reference of several
tables. A record tells which settings its run had: when configs/public_small.py moves on, `python -m tests.study.run`
names the cells whose records it no longer describes, and what to add to their overrides.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

DEFAULT = 'default'  # The cell of configs/public_small.py as it is: the tables and pictures of the recipe are its.
SAMPLES, WITHOUT = 'samples seen', 'without a term'  # Factors that a picture is drawn of.

SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Cell:
  """One setting of the study.

  Attributes:
    name: of its records and runs, part of their paths.
    values: factor -> the value that the cell is a case of.
    overrides: config key -> value, over configs/public_small.py.
    seeds: of the runs.
    baselines: evaluate the majority class, log-mel statistics and the encoder untrained, too.
  """

  name: str
  values: Mapping[str, str]
  overrides: Mapping[str, Any]
  seeds: tuple[int, ...] = (0,)
  baselines: bool = False


# A look at many settings: 25,600 clips each, a twelfth of what the recipe may cost.
_SHORT = {'steps': 200, 'optimizer.warmup_steps': 20}
# The figures of health, closely, of runs that nobody would want longer.
_WATCHED = _SHORT | {'log.health_every_steps': 20, 'log.every_steps': 10}
# As on the command line, a preset takes the place of all that the config says of the objective.
_BYOL_A = {'objective.preset': 'byol_a'}

CELLS = (
  Cell(
    'short',
    {
      'objective': 'three terms, covariance',
      'learning rate': '1e-3',
      'batch size': '128, 200 steps',
      'projector sees': 'dense layers',
      'encoder': 'AudioNTT2020, 64 channels, width 512',
      'invariance weight': '5',
      'resize over frequency': '0.8 to 1.25',
      'views': 'one crop',
      WITHOUT: 'none',
      SAMPLES: '25,600',
    },
    _WATCHED,
    baselines=True,
  ),
  Cell('short_byol_a', {'objective': 'BYOL-A'}, _SHORT | _BYOL_A),
  Cell(
    'short_debiased',
    {'objective': 'three terms, debiased covariance'},
    _SHORT | {'objective.decorrelation_term': 'debiased_covariance'},
  ),
  # Does the convolutions' freedom from the invariance keep pitch?
  Cell('short_all_layers', {'projector sees': 'all layers'}, _SHORT | {'projector.dense_only': False}),
  Cell(
    'short_2022',
    {'encoder': 'AudioNTT2022, 64 channels, width 512'},
    _SHORT | {'encoder.conv_blocks': 2, 'encoder.concat_blocks': 2},
  ),
  Cell(
    'short_32_channels', {'encoder': 'AudioNTT2020, 32 channels, width 512'}, _SHORT | {'encoder.conv_channels': 32}
  ),
  Cell('short_invariance_25', {'invariance weight': '25'}, _SHORT | {'objective.invariance': 25.0}),
  Cell('short_resize_wide', {'resize over frequency': '0.6 to 1.5'}, _SHORT | {'augment.resize_frequency': (0.6, 1.5)}),
  Cell('short_resize_none', {'resize over frequency': 'none'}, _SHORT | {'augment.resize_frequency': (1.0, 1.0)}),
  Cell('short_two_crops', {'views': 'two crops'}, _SHORT | {'data.crops': 2}),
  # Equal samples.
  Cell('short_batch_64', {'batch size': '64, 400 steps'}, _SHORT | {'batch_size': 64, 'steps': 400}),
  Cell('short_rate_3e-4', {'learning rate': '3e-4'}, _SHORT | {'optimizer.learning_rate': 3e-4}),
  Cell('short_rate_3e-3', {'learning rate': '3e-3'}, _SHORT | {'optimizer.learning_rate': 3e-3}),
  # What collapse looks like.
  Cell('no_invariance', {WITHOUT: 'invariance'}, _WATCHED | {'objective.invariance': 0.0}),
  Cell('no_diversity', {WITHOUT: 'diversity'}, _WATCHED | {'objective.diversity': 0.0}),
  Cell('no_decorrelation', {WITHOUT: 'decorrelation'}, _WATCHED | {'objective.decorrelation': 0.0}),
  # The recipe as it is, and the peer's objective in its place, with equal samples.
  Cell(DEFAULT, {SAMPLES: '102,400'}, {}, SEEDS, baselines=True),
  Cell('byol_a', {'objective at full length': 'BYOL-A'}, _BYOL_A, SEEDS),
)
