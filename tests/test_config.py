import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfie_jax import command_line, validation
from selfie_jax import config as config_lib
from selfie_jax.config import Config, Evaluation, Task
from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks.folder import find_tasks
from selfie_jax.from_mapping import from_mapping
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
  assert config.encoder == config_lib.AudioNTT()


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


def test_a_preset_sets_what_is_not_given(tmp_path):
  path = _write(tmp_path, "{'objective': {'preset': 'barlow_twins', 'decorrelation': 0.01}}")
  objective = config_lib.load(path, ['--config.objective.invariance=2.0'], Config).objective
  assert objective.decorrelation_term == objective.invariance_term == 'cross_correlation'
  assert (objective.invariance, objective.diversity, objective.decorrelation) == (2.0, 0.0, 0.01)


def test_a_preset_on_the_command_line_takes_the_place_of_the_files_objective(tmp_path):
  path = _write(tmp_path, "{'objective': {'invariance': 5.0, 'normalize': True}}")
  overrides = ['--config.objective.decorrelation=2.0', '--config.objective.preset=vicreg']
  objective = config_lib.load(path, overrides, Config).objective
  assert objective == config_lib.Objective(variance_statistics='global', decorrelation=2.0)


def test_a_mixture_on_the_command_line_takes_the_place_of_the_files_dataset(tmp_path):
  path = _write(tmp_path, "{'data': {'path': 'a', 'splits': ('train',), 'crop_seconds': 2.0}}")
  mixture = '--config.data.mixture=[{"path": "b", "weight": 3}, {"path": "c"}]'
  data = config_lib.load(path, [mixture], Config).data
  assert (data.path, data.splits, data.crop_seconds) == ('', (), 2.0)
  assert data.mixture == (config_lib.Part('b', 3.0), config_lib.Part('c'))
  with pytest.raises(UserError, match='give one or the other'):
    command_line.parse_training(['--config', str(path), '--workdir', 'x', mixture, '--config.data.path=d'])


def test_every_preset_is_a_valid_objective(tmp_path):
  for preset in config_lib.PRESETS:
    config = config_lib.load(_write(tmp_path, {}), [f'--config.objective.preset={preset}'], Config)
    validation.validate(config)
  assert config_lib.load(_write(tmp_path, {}), ['--config.objective.preset=selfie'], Config) == Config()


def test_the_preset_of_byol_a_keeps_a_moving_average(tmp_path):
  preset = '--config.objective.preset=byol_a'
  assert config_lib.load(_write(tmp_path, {}), [preset], Config).average == config_lib.Average(0.99)
  slower = config_lib.load(_write(tmp_path, {}), [preset, '--config.average.decay=0.996'], Config)
  assert slower.average == config_lib.Average(0.996)


def test_an_encoder_is_chosen_by_its_name_and_has_only_its_own_settings(tmp_path):
  path = _write(tmp_path, "{'encoder': {'name': 'vit', 'size': 'tiny', 'patch': (8, 4)}}")
  assert config_lib.load(path, [], Config).encoder == config_lib.ViT(size='tiny', patch=(8, 4))
  with pytest.raises(UserError, match='unknown config key "encoder.width"'):
    config_lib.load(path, ['--config.encoder.width=64'], Config)
  with pytest.raises(UserError, match='unknown config key "encoder.patch"'):
    config_lib.load(path, ['--config.encoder.name=audiontt'], Config)


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('--config.objective.diversity_term=entropy', 'uniformity, hyperspherical_energy, coding_rate'),
    ('--config.compute_dtype=float16', 'it can be float32, bfloat16'),
    ('--config.microbatches=0', 'at least 1'),
    ('--config.average.decay=1.0', 'below 1'),
    ('--config.average.evaluate=True', 'average.decay is 0'),
    ('--config.average.decay=0.9', 'nobody reads the average'),
    ('--config.encoder.concat_blocks=2', 'concat_conv is False'),
    ('--config.encoder={"concat_conv": True, "concat_blocks": 4}', 'encoder.conv_blocks, 3'),
    ('--config.objective={"preset": "byol_a", "invariance_term": "predictions"}', 'cross_correlation, prediction'),
    ('--config.objective.preset=["vicreg"]', 'it can be selfie, vicreg'),
    ('--config.encoder.name=["vit"]', 'it can be audiontt, vit'),
    ('--config.objective.energy_exponent=20.0', 'above 10 two equal embeddings'),
    ('--config.data.crop_seconds=0.0', 'at least one sample'),
    ('--config.mesh.strategy=[("(", "fsdp")]', 'no regular expression'),
    ('--config.mesh.strategy=[("kernel", "shard")]', 'it can be fsdp, replicate'),
    ('--config.encoder={"name": "vit", "size": "huge"}', 'it can be tiny, small, base'),
    ('--config.encoder={"name": "vit", "patch": (10, 16)}', 'n_mels is 64: the first number of the patch'),
    ('--config.encoder={"name": "vit", "patch": (16, 100)}', 'needs at least 100'),
    ('--config.optimizer.name=sgd', 'it can be adam, adamw, lars'),
    ('--config.log_mel.hop_length=0', 'hop_length" is 0'),
    ('--config.log_mel.f_max=9000', '9000 Hz'),
    ('--config.augment.mixup_group=1', 'a group of 2'),
    ('--config.seed=-1', 'cannot be negative'),
    ('--config.steps=0', 'at least 1'),
    ('--config.batch_size=1', 'at least 2'),
    ('--config.data.crop_seconds=0.05', 'needs at least 8'),
    ('--config.data.crops=3', 'is 3; it is 1'),
    ('--config.data.read=bytes', 'it can be record, crop'),
    ('--config.data.on_damage=ignore', 'it can be stop, skip'),
    ('--config.data.splits=eval', "wants a list, such as ['eval'], got 'eval'"),
    ('--config.data.mixture=[{"path": "x", "weight": 0}]', "has path 'x' and weight 0"),
    ('--config.augment.mixup_ratio=1.5', 'between 0 and 1'),
    ('--config.augment.resize_frequency=(1.5, 0.6)', 'low, high'),
    ('--config.optimizer.learning_rate=-1.0', 'above 0'),
    ('--config.encoder.dropout=1.0', 'below 1'),
  ],
)
def test_a_setting_that_cannot_work_is_refused_before_anything_starts(tmp_path, override, message):
  path = _write(tmp_path, "{'steps': 7}")
  with pytest.raises(UserError, match=message.replace('(', r'\(').replace('[', r'\[')):
    command_line.parse_training(['--config', str(path), '--workdir', str(tmp_path), override])


def test_a_missing_or_odd_config_file_is_named(tmp_path):
  with pytest.raises(UserError, match='no config file at'):
    config_lib.load(tmp_path / 'absent.py', [], Config)
  (tmp_path / 'empty.py').write_text('x = 1\n')
  with pytest.raises(UserError, match='no function get_config'):
    config_lib.load(tmp_path / 'empty.py', [], Config)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('def get_config(:\n', 'SyntaxError'),
    ('x = 1\ndef get_config():\n  return y\n', r'\(line 3\): NameError: .*y'),
    ('import a_package_that_is_not_there\n', r'\(line 1\): ModuleNotFoundError'),
  ],
)
def test_a_mistake_in_a_config_file_is_one_clear_line(tmp_path, text, message):
  (tmp_path / 'x.py').write_text(text)
  with pytest.raises(UserError, match=f'x.py cannot be used.*{message}'):
    config_lib.load(tmp_path / 'x.py', [], Config)


def test_the_config_of_the_public_tasks_evaluates_any_others():
  mine = Task('mine', '/there')
  overrides = ["--config.tasks=[{'name': 'mine', 'path': '/there'}]"]
  assert find_tasks(config_lib.load(ROOT / 'configs/eval/public.py', overrides, Evaluation)) == (mine,)


def test_every_shipped_config_is_valid():
  for path in sorted((ROOT / 'configs').glob('*.py')):
    validation.validate(config_lib.load(path, [], Config))
  for path in sorted((ROOT / 'configs' / 'eval').glob('*.py')):
    config = config_lib.load(path, [], Evaluation)
    assert config.tasks or config.tasks_dir


_FIELDS = [field.name for field in dataclasses.fields(Config)]


@given(
  st.dictionaries(
    st.sampled_from(_FIELDS) | st.text(),
    st.recursive(st.integers() | st.text() | st.none(), lambda x: st.dictionaries(st.text(), x), max_leaves=5),
  )
)
def test_any_mapping_becomes_the_config_it_says_or_one_clear_error(values):
  with contextlib.suppress(UserError):
    config = from_mapping(Config, values)
    given_scalars = {key: value for key, value in values.items() if not isinstance(value, dict)}
    assert given_scalars.items() <= dataclasses.asdict(config).items()


@given(
  steps=st.integers(1, 10**12), rate=st.floats(1e-12, 1e3), path=st.from_regex(r'[a-z/][a-z0-9_/.-]*', fullmatch=True)
)
def test_an_override_is_read_as_it_was_written(steps, rate, path):
  values = {}
  for override in (f'steps={steps}', f'optimizer.learning_rate={rate}', f'data.path={path}'):
    config_lib._apply_override(values, f'--config.{override}')
  config = from_mapping(Config, values)
  assert (config.steps, config.optimizer.learning_rate, config.data.path) == (steps, rate, path)
