"""The study's cells: what is run, as a table.

A cell is configs/public_small.py with some settings overridden, and it is run with each of `SEEDS`. It stands in the
table of every factor that `values` names, under the value given there, so that one run can be the reference of several
tables. A record tells which settings its run had: when configs/public_small.py moves on, `python -m tests.study.run`
names the cells whose records it no longer describes, and what to add to their overrides.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

DEFAULT = 'default'  # The cell of configs/public_small.py as it is: the tables and pictures of the recipe are its.
PEER = 'byol_a'  # The same with the peer's objective.
REFERENCES = ('short', DEFAULT)  # What a factor's other cells are compared with, where it has one of them.
# Factors that a picture is drawn of. A value of the first is a number and, after the last comma, a curve's name.
SAMPLES, WITHOUT = 'samples seen', 'without a term'

SEEDS = (0, 1, 2)  # Of every cell.


@dataclasses.dataclass(frozen=True)
class Cell:
  """One setting of the study.

  Attributes:
    name: of its records and runs, part of their paths.
    values: factor -> the value that the cell is a case of.
    overrides: config key -> value, over configs/public_small.py.
    baselines: evaluate the majority class, log-mel statistics and the encoder untrained, too.
    devices: of JAX, which share the batch, on the one core that every run has.
  """

  name: str
  values: Mapping[str, str]
  overrides: Mapping[str, Any]
  baselines: bool = False
  devices: int = 1


# A look at many settings: 25,600 clips each, by an encoder of half the recipe's channels, which takes a third of its
# time, at a rate that was the recipe's before the study.
_SMALL = {'encoder.conv_channels': 32, 'optimizer.learning_rate': 1e-3}
_SHORT = _SMALL | {'steps': 200, 'optimizer.warmup_steps': 20}
_LONG = _SMALL | {'steps': 800, 'optimizer.warmup_steps': 40}
# The figures of health, closely, of runs that nobody would want longer.
_WATCHED = _SHORT | {'log.health_every_steps': 20, 'log.every_steps': 10}
# As on the command line, a preset takes the place of all that the config says of the objective.
_BYOL_A = {'objective.preset': 'byol_a'}
_ON_SPHERE = {'objective.preset': 'uniformity_covariance'}
_CODING_RATE = _ON_SPHERE | {'objective.diversity_term': 'coding_rate'}
_JOINT = _SHORT | {'optimizer.learning_rate': 3e-3, 'augment.equalizer': 0.5}


def _short(name: str, factor: str, value: str, overrides: Mapping[str, Any]) -> Cell:
  """Returns a cell that differs from `short` in one factor."""
  return Cell(f'short_{name}', {factor: value}, _SHORT | overrides)


CELLS = (
  Cell(
    'short',
    {
      'objective': 'three terms',
      'learning rate': '1e-3',
      'batch size': '128, 200 steps',
      'projector': '1,024, 256 (of the dense layers)',
      'encoder': 'AudioNTT2020, 32 channels, width 512',
      'invariance weight': '5',
      'decorrelation': 'covariance, weight 1',
      'diversity': 'variance, weight 25',
      'resize over frequency': '0.8 to 1.25',
      'other distortions': "BYOL-A v2's",
      'views': 'one crop of 0.95 s',
      'weights evaluated': 'the last',
      WITHOUT: 'none',
      SAMPLES: '25,600, three terms at 1e-3',
    },
    _WATCHED,
    baselines=True,
  ),
  Cell('short_byol_a', {'objective': 'BYOL-A', SAMPLES: '25,600, BYOL-A at 1e-3'}, _SHORT | _BYOL_A),
  _short('debiased', 'decorrelation', 'debiased, weight 1', {'objective.decorrelation_term': 'debiased_covariance'}),
  _short('all_layers', 'projector', '1,024, 256 of all layers', {'projector.dense_only': False}),
  _short('resize_none', 'resize over frequency', 'none', {'augment.resize_frequency': (1.0, 1.0)}),
  _short('resize_wide', 'resize over frequency', '0.6 to 1.5', {'augment.resize_frequency': (0.6, 1.5)}),
  _short('two_crops', 'views', 'two crops of 0.95 s', {'data.crops': 2}),
  _short('rate_3e-4', 'learning rate', '3e-4', {'optimizer.learning_rate': 3e-4}),
  _short('rate_3e-3', 'learning rate', '3e-3', {'optimizer.learning_rate': 3e-3}),
  _short('rate_1e-2', 'learning rate', '1e-2', {'optimizer.learning_rate': 1e-2}),
  # Equal samples.
  _short('batch_64', 'batch size', '64, 400 steps', {'batch_size': 64, 'steps': 400}),
  _short(
    'batch_64_rate_3e-3',
    'batch size',
    '64, 400 steps, rate 3e-3',
    {'batch_size': 64, 'steps': 400, 'optimizer.learning_rate': 3e-3},
  ),
  _short('batch_256', 'batch size', '256, 100 steps', {'batch_size': 256, 'steps': 100}),
  _short('byol_a_3e-4', 'objective', 'BYOL-A, rate 3e-4', _BYOL_A | {'optimizer.learning_rate': 3e-4}),
  _short('byol_a_3e-3', 'objective', 'BYOL-A, rate 3e-3', _BYOL_A | {'optimizer.learning_rate': 3e-3}),
  _short('invariance_1', 'invariance weight', '1', {'objective.invariance': 1.0}),
  _short('invariance_25', 'invariance weight', '25', {'objective.invariance': 25.0}),
  _short('decorrelation_5', 'decorrelation', 'covariance, weight 5', {'objective.decorrelation': 5.0}),
  _short('decorrelation_02', 'decorrelation', 'covariance, weight 0.2', {'objective.decorrelation': 0.2}),
  _short(
    'debiased_5',
    'decorrelation',
    'debiased, weight 5',
    {'objective.decorrelation_term': 'debiased_covariance', 'objective.decorrelation': 5.0},
  ),
  _short('uniformity', 'diversity', 'uniformity, on the sphere', _ON_SPHERE),
  _short(
    'energy',
    'diversity',
    'hyperspherical energy, on the sphere',
    _ON_SPHERE | {'objective.diversity_term': 'hyperspherical_energy'},
  ),
  _short('coding_rate', 'diversity', 'coding rate, on the sphere', _CODING_RATE),
  _short('barlow_twins', 'objective', 'Barlow Twins', {'objective.preset': 'barlow_twins'}),
  _short('mixup_none', 'other distortions', 'no mixup', {'augment.mixup_ratio': 0.0}),
  _short('fader_none', 'other distortions', 'no fader', {'augment.fader': 0.0}),
  _short('time_none', 'other distortions', 'no resize over time', {'augment.resize_time': (1.0, 1.0)}),
  _short('noise', 'other distortions', 'noise, up to 0.2', {'augment.noise': 0.2}),
  _short('equalizer_05', 'other distortions', 'and an equalizer, 0.5', {'augment.equalizer': 0.5}),
  _short('equalizer_1', 'other distortions', 'and an equalizer, 1', {'augment.equalizer': 1.0}),
  _short('normalize_views', 'other distortions', 'and views normalised', {'augment.normalize_views': True}),
  _short('half_crop', 'views', 'one crop of 0.47 s', {'data.crop_seconds': 0.47}),
  _short('double_crop', 'views', 'one crop of 1.91 s', {'data.crop_seconds': 1.91}),
  _short('projector_small', 'projector', '256, 64', {'projector.hidden_width': 256, 'projector.output_width': 64}),
  _short(
    'projector_wide', 'projector', '4,096, 1,024', {'projector.hidden_width': 4_096, 'projector.output_width': 1_024}
  ),
  _short('projector_deep', 'projector', '1,024, 1,024, 256', {'projector.hidden_layers': 2}),
  _short('64_channels', 'encoder', 'AudioNTT2020, 64 channels, width 512', {'encoder.conv_channels': 64}),
  _short('width_2048', 'encoder', 'AudioNTT2020, 32 channels, width 2,048', {'encoder.width': 2_048}),
  _short(
    '2022',
    'encoder',
    'AudioNTT2022, 32 channels, width 512',
    {'encoder.conv_blocks': 2, 'encoder.concat_blocks': 2},
  ),
  _short(
    '4_blocks',
    'encoder',
    'four blocks, 32 channels, width 512',
    {'encoder.conv_blocks': 4, 'encoder.concat_blocks': 4},
  ),
  _short('dropout_none', 'encoder', 'AudioNTT2020, 32 channels, width 512, no dropout', {'encoder.dropout': 0.0}),
  _short(
    'dropout_none_rate_3e-3',
    'encoder',
    'AudioNTT2020, 32 channels, width 512, no dropout, rate 3e-3',
    {'encoder.dropout': 0.0, 'optimizer.learning_rate': 3e-3},
  ),
  _short(
    'byol_a_dropout_none_rate_3e-3',
    'objective',
    'BYOL-A, no dropout, rate 3e-3',
    _BYOL_A | {'encoder.dropout': 0.0, 'optimizer.learning_rate': 3e-3},
  ),
  _short('average', 'weights evaluated', 'moving average', {'average.decay': 0.98, 'average.evaluate': True}),
  # A variance of 32 clips on each of four devices, and of all 128. On one device they are the same.
  Cell('short_per_device', {'diversity': 'variance of 32 clips a device'}, _SHORT, devices=4),
  Cell(
    'short_global',
    {'diversity': 'variance of 128 clips, on 4 devices'},
    _SHORT | {'objective.variance_statistics': 'global'},
    devices=4,
  ),
  # What has been better alone, together.
  *(
    Cell(f'joint_{name}', {'together with an equalizer and rate 3e-3': title}, _JOINT | objective)
    for name, title, objective in (
      ('variance', 'three terms, variance', {}),
      ('coding_rate', 'three terms, coding rate on the sphere', _CODING_RATE),
      ('byol_a', 'BYOL-A', _BYOL_A),
    )
  ),
  # What shows after four times as many clips only.
  Cell('long', {'at 102,400 clips': 'three terms', SAMPLES: '102,400, three terms at 1e-3'}, _LONG),
  Cell('long_byol_a', {'at 102,400 clips': 'BYOL-A', SAMPLES: '102,400, BYOL-A at 1e-3'}, _LONG | _BYOL_A),
  # What collapse looks like.
  Cell('no_invariance', {WITHOUT: 'invariance'}, _WATCHED | {'objective.invariance': 0.0}),
  Cell('no_diversity', {WITHOUT: 'diversity'}, _WATCHED | {'objective.diversity': 0.0}),
  Cell('no_decorrelation', {WITHOUT: 'decorrelation'}, _WATCHED | {'objective.decorrelation': 0.0}),
  # The recipe as it is, and the peer's objective in its place, with equal samples.
  Cell(DEFAULT, {'recipe': 'three terms', SAMPLES: '102,400, the recipe'}, {}, baselines=True),
  Cell(PEER, {'recipe': 'BYOL-A', SAMPLES: '102,400, the recipe with BYOL-A'}, _BYOL_A),
  # The recipe for fewer clips, and for more.
  *(
    Cell(f'{name}{suffix}', {SAMPLES: f'{samples}, {curve}'}, overrides | objective)
    for name, samples, overrides in (
      ('sixteenth', '6,400', {'steps': 50, 'optimizer.warmup_steps': 5}),
      ('quarter', '25,600', {'steps': 200, 'optimizer.warmup_steps': 20}),
    )
    for suffix, curve, objective in (('', 'the recipe', {}), ('_byol_a', 'the recipe with BYOL-A', _BYOL_A))
  ),
  Cell('double', {SAMPLES: '204,800, the recipe'}, {'steps': 1600}),
)
