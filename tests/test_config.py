import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfie_jax import config as config_lib
from selfie_jax.config import Config, Evaluation
from selfie_jax.errors import UserError
from tests.processes import ROOT


def _write(tmp_path, body):
  path = tmp_path / 'run.py'
  path.write_text(f'import ml_collections\n\ndef get_config():\n  return ml_collections.ConfigDict({body})\n')
  return path


def test_a_config_file_names_only_what_differs_and_the_command_line_wins(tmp_path):
  path = _write(tmp_path, "{'steps': 7, 'optimizer': {'learning_rate': 0.1, 'name': 'lars'}}")
  config = config_lib.load(
    path, ['--config.optimizer.learning_rate=2e-3', '--config.augment.resize_time=(1, 1)'], Config
  )
  assert config.steps == 7
  assert config.optimizer == config_lib.Optimizer(name='lars', learning_rate=2e-3)
  assert config.augment.resize_time == (1.0, 1.0)
  assert config.encoder == config_lib.Encoder()


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('--config.optimizer.learning_rat=1', 'Did you mean "learning_rate"'),
    ('--config.optimiser.name=adam', 'Did you mean "optimizer"'),
    ('--config.qqq=1', 'Known keys: steps'),
    ('--config.steps=many', "wants a value of type int, got 'many'"),
    ('--config.steps=True', 'wants a value of type int'),
    ('--config.data=3', 'is a group of settings'),
    ('--config.steps.of=3', 'is a single value'),
    ('--config.augment.resize_time=1', 'wants a list'),
    ('--config.augment.resize_time=(1,2,3)', 'wants 2 values, got 3'),
    ('--config.optimizer.learning_rate=1e999', 'finite'),
    ('--steps=3', 'overrides are written --config.key=value'),
  ],
)
def test_a_wrong_setting_is_one_clear_line(tmp_path, override, message):
  with pytest.raises(UserError) as error:
    config_lib.load(_write(tmp_path, "{'steps': 7}"), [override], Config)
  assert message in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('--config.optimizer.name=sgd', 'it can be adam, adamw, lars'),
    ('--config.log_mel.hop_length=0', 'hop_length" is 0'),
    ('--config.log_mel.f_max=9000', '9000 Hz'),
    ('--config.augment.mixup_group=1', 'a group of 2'),
    ('--config.seed=-1', 'cannot be negative'),
    ('--config.steps=0', 'at least 1'),
    ('--config.batch_size=1', 'at least 2'),
    ('--config.data.crop_seconds=0.05', 'needs at least 8'),
    ('--config.augment.mixup_ratio=1.5', 'between 0 and 1'),
    ('--config.augment.resize_frequency=(1.5, 0.6)', 'low, high'),
    ('--config.optimizer.learning_rate=-1.0', 'above 0'),
    ('--config.encoder.dropout=1.0', 'below 1'),
  ],
)
def test_a_setting_that_cannot_work_is_refused_before_anything_starts(tmp_path, override, message):
  path = _write(tmp_path, "{'steps': 7}")
  with pytest.raises(UserError, match=message.replace('(', r'\(').replace('[', r'\[')):
    config_lib.parse_training(['--config', str(path), '--workdir', str(tmp_path), override])


def test_a_missing_or_odd_config_file_is_named(tmp_path):
  with pytest.raises(UserError, match='no config file at'):
    config_lib.load(tmp_path / 'absent.py', [], Config)
  (tmp_path / 'empty.py').write_text('x = 1\n')
  with pytest.raises(UserError, match='no function get_config'):
    config_lib.load(tmp_path / 'empty.py', [], Config)


def test_every_shipped_config_is_valid():
  for path in sorted((ROOT / 'configs').glob('*.py')):
    config_lib.validate(config_lib.load(path, [], Config))
  for path in sorted((ROOT / 'configs' / 'eval').glob('*.py')):
    assert config_lib.load(path, [], Evaluation).tasks


_FIELDS = [field.name for field in dataclasses.fields(Config)]


@given(
  st.dictionaries(
    st.sampled_from(_FIELDS) | st.text(),
    st.recursive(st.integers() | st.text() | st.none(), lambda x: st.dictionaries(st.text(), x), max_leaves=5),
  )
)
def test_any_mapping_becomes_the_config_it_says_or_one_clear_error(values):
  with contextlib.suppress(UserError):
    config = config_lib.from_mapping(Config, values)
    given_scalars = {key: value for key, value in values.items() if not isinstance(value, dict)}
    assert given_scalars.items() <= dataclasses.asdict(config).items()


@given(
  steps=st.integers(1, 10**12), rate=st.floats(1e-12, 1e3), path=st.from_regex(r'[a-z/][a-z0-9_/.-]*', fullmatch=True)
)
def test_an_override_is_read_as_it_was_written(steps, rate, path):
  values = {}
  for override in (f'steps={steps}', f'optimizer.learning_rate={rate}', f'data.path={path}'):
    config_lib._apply_override(values, f'--config.{override}')
  config = config_lib.from_mapping(Config, values)
  assert (config.steps, config.optimizer.learning_rate, config.data.path) == (steps, rate, path)
