import importlib.util
import json
import re

import jax
import pytest
from flax import nnx

from selfie_jax import compile as compile_command
from selfie_jax import config as config_lib
from selfie_jax.errors import UserError
from selfie_jax.training.programs import hlo, topology
from selfie_jax.training.state import build_model
from tests.conftest import require
from tests.processes import OPTIMIZED, ROOT, run_python

TINY = 'tests/compile/tiny_config.py'


@pytest.fixture(scope='module')
def libtpu():
  require('libtpu', importlib.util.find_spec('libtpu'))


def compile_tiny(*arguments, check=True):
  return run_python('-m', 'selfie_jax.compile', '--config', TINY, *arguments, check=check, compiler=OPTIMIZED)


@pytest.fixture(scope='module')
def compiled(libtpu, tmp_path_factory):
  """256 chips, in microbatches, with parameters over groups of 4: the report, the program's text and what was shown."""
  folder = tmp_path_factory.mktemp('compiled')
  shown = compile_tiny(
    *('--topology', 'v5e:16x16', '--clips_per_device', 8, '--output', folder / 'new' / 'report.json', '--hlo', folder),
    *('--config.microbatches=2', '--config.mesh.fsdp=4'),
  )
  return json.loads((folder / 'new' / 'report.json').read_text()), (folder / 'v5e_16x16.txt').read_text(), shown


def test_the_report_says_what_was_compiled_for_what(compiled):
  report, _, _ = compiled
  assert report['config'] == TINY
  assert report['overrides'] == ['--config.microbatches=2', '--config.mesh.fsdp=4']
  assert set(report['versions']) == {'jax', 'jaxlib', 'libtpu'}
  (program,) = report['programs']
  assert program['error'] is None
  assert (program['device_kind'], program['devices'], program['processes']) == ('TPU v5 lite', 256, 64)
  assert program['mesh'] == {'data': 64, 'fsdp': 4}
  assert (program['clips_per_device'], program['batch_size'], program['microbatches']) == (8, 2_048, 2)
  config = config_lib.load(TINY, [], config_lib.Config)
  parameters = jax.tree.leaves(nnx.state(build_model(config), nnx.Param))
  assert program['parameters'] == sum(array.size for array in parameters)
  assert program['flops_per_device'] > 0
  assert program['compile_seconds'] > 0


def test_the_memory_adds_up_and_is_a_share_of_the_chips(compiled):
  memory = compiled[0]['programs'][0]['memory']
  assert memory['available'] == 15.75 * 2**30
  assert memory['peak'] == (
    memory['arguments'] + memory['outputs'] - memory['alias'] + memory['temporaries'] + memory['code']
  )
  assert 0 < memory['peak'] < memory['available']


def test_the_collectives_are_those_of_the_compiled_program(compiled):
  report, text, _ = compiled
  program = report['programs'][0]
  for kind in hlo.KINDS:
    in_text = re.findall(rf'^ *(?:ROOT )?%[\w.-]+ = .* {kind}(?:-start)?\(%', text, re.MULTILINE)
    assert len([c for c in program['collectives'] if c['kind'] == kind]) == len(in_text)
  assert {'all-reduce', 'all-gather', 'reduce-scatter'} <= {c['kind'] for c in program['collectives']}
  assert max(c['runs'] for c in program['collectives']) == 2  # Batch normalisation's, of each microbatch.
  assert program['traffic']['bytes'] == sum(c['runs'] * c['bytes'] for c in program['collectives'])
  assert program['traffic']['bytes'] == sum(kind['bytes'] for kind in program['traffic']['by_kind'].values())


def test_what_is_the_objectives_is_told_from_the_rest_of_a_joined_collective(compiled):
  report, text, _ = compiled
  traffic = report['programs'][0]['traffic']
  arrays = [part for c in report['programs'][0]['collectives'] for part in c['parts'] if part['objective']]
  # Means and variances of two views of 16 dimensions, and the two covariances' halves (no row is sent twice).
  assert traffic['objective_bytes'] == sum(part['bytes'] for part in arrays)
  assert 4 * 2 * 16 * 16 / 2 <= traffic['objective_bytes'] <= 4 * 2 * 16 * 16 + 4 * 2 * 4 * 16
  assert 0 < traffic['objective_share'] < 1
  assert all('objective' in part['op_name'] for part in arrays)


def test_the_front_end_of_a_tpu_program_is_a_matrix_product(compiled):
  assert ' fft(' not in compiled[1]


def test_the_compiler_is_quiet_and_the_table_is_on_stdout(compiled):
  shown = compiled[2]
  assert re.fullmatch(r'wrote \S+report.json\n', shown.stderr)
  assert '256 (TPU v5 lite), 64 hosts; mesh data=64, fsdp=4' in shown.stdout
  assert 'jvp(objective)' in shown.stdout


def test_one_line_says_what_does_not_fit_and_the_other_topologies_are_reported(libtpu, tmp_path):
  result = compile_tiny(
    *('--topology', 'v5e:2x2', 'v5p:2x2x1', '--clips_per_device', 8, '--output', tmp_path / 'report.json'),
    *('--config.projector.hidden_width=40_000', '--config.projector.hidden_layers=2'),
    check=False,
  )
  (line,) = (line for line in result.stderr.splitlines() if 'wrote' not in line)
  needs = re.fullmatch(
    r'error: v5e:2x2: the train step needs ([\d.]+) GiB on each device, and one has 15.75 GiB: '
    r'try microbatches \(now 1\), remat=True, mesh.fsdp \(now 1\), fewer clips a device \(now 8\)',
    line,
  )
  assert float(needs[1]) > 15.75
  assert result.returncode == 1
  too_large, fits = json.loads((tmp_path / 'report.json').read_text())['programs']
  assert too_large['error'] == line.removeprefix('error: ')
  assert too_large['memory']['peak'] > too_large['memory']['available']
  assert fits['error'] is None
  assert 15.75 * 2**30 < fits['memory']['peak'] < fits['memory']['available']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['v5f:4x4'], 'unknown topology "v5f:4x4": it can be v4, v5e, v5p, v6e, tpu7x, h100, as in'),
    (['v5e'], 'a slice of v5e has 2 sides, as in v5e:4x4'),
    (['v5p:4x4'], 'a slice of v5p has 3 sides, as in v5p:4x4x4'),
    (['v5e:4x4', 'v5e:0x4'], 'unknown topology "v5e:0x4"'),
    (['v5e:32x32'], 'v5e:32x32 has 1024 chips, and a slice of v5e at most 256'),
    (['h100:12'], 'unknown topology "h100:12": give a number of GPUs, whole hosts of 8'),
    (['h100:16', '--num_slices', '2'], '--num_slices is 2, and h100:16 has no slices'),
    (['v5e:4x4', '--num_slices', '0'], '--num_slices is 0'),
    (['v5e:4x4', '--clips_per_device', '0'], '--clips_per_device is 0'),
    (['v5e:4x4', '--num_slices', 'two'], "argument --num_slices: invalid int value: 'two'"),
    (['v5e:4x4', '--config.stpes=3'], 'unknown config key "stpes"'),
  ],
)
def test_a_mistake_is_named_before_anything_is_compiled(arguments, message):
  with pytest.raises(UserError, match=re.escape(message)):
    compile_command.parse_compilation(['--config', TINY, '--topology', *arguments])


def test_a_batch_that_cannot_be_divided_is_one_line(libtpu):
  result = compile_tiny('--topology', 'v5e:16x16', '--config.batch_size=1000', check=False)
  assert result.returncode == 1
  assert result.stderr.startswith('error: batch_size 1000 cannot be divided over 256 devices')
  assert result.stderr.count('\n') == 1


def test_a_slice_that_libtpu_does_not_know_is_one_line(libtpu):
  result = compile_tiny('--topology', 'v5e:3x5', check=False)
  assert result.returncode == 1
  assert result.stderr.startswith("error: tpu's compiler has no topology v5e:3x5: ")
  assert result.stderr.count('\n') == 1


@pytest.mark.parametrize(
  ('package', 'topology_name', 'message'),
  [
    ('libtpu', 'v5e:4x4', 'compiling for TPUs needs libtpu, {} launch/requirements-tpu.txt'),
    (
      'jax_cuda13_plugin',
      'h100:8',
      'compiling for GPUs needs jax_cuda13_plugin, {} launch/requirements-gpu-compiler.txt',
    ),
  ],
)
def test_without_the_compiler_one_line_says_how_to_install_it(package, topology_name, message):
  hide = f"import runpy, sys; sys.modules['{package}'] = None; "
  command = hide + "runpy.run_module('selfie_jax.compile', run_name='__main__')"
  result = run_python('-c', command, '--config', TINY, '--topology', topology_name, check=False)
  assert result.returncode == 1
  assert result.stderr == f'error: {message.format("which is not installed: pip install -r")}\n'
  requirements = message.split()[-1]
  assert (ROOT / requirements).is_file()


@pytest.fixture(scope='module')
def gpu_compiler():
  require('jax_cuda13_plugin', importlib.util.find_spec('jax_cuda13_plugin'))


def test_gpus_that_are_not_there_are_compiled_for_too(gpu_compiler, tmp_path):
  result = compile_tiny('--topology', 'h100:16', '--clips_per_device', 8, '--output', tmp_path / 'report.json')
  assert 'NVIDIA H100 80GB HBM3' in result.stdout
  (program,) = json.loads((tmp_path / 'report.json').read_text())['programs']
  assert (program['devices'], program['processes'], program['flops_per_device']) == (16, 2, None)
  assert 0 < program['memory']['peak'] < program['memory']['available']
  assert program['traffic']['objective_count'] >= 3


def test_one_line_says_what_does_not_fit_on_a_gpu(gpu_compiler):
  large = ('--config.projector.hidden_width=70_000', '--config.projector.hidden_layers=2')
  result = compile_tiny('--topology', 'h100:8', '--clips_per_device', 8, *large, check=False)
  assert result.returncode == 1
  needs = re.fullmatch(
    r'error: h100:8: the train step needs ([\d.]+) GiB on each device, and one has 59.35 GiB: .*\n', result.stderr
  )
  assert float(needs[1]) > 59.35


def test_the_memory_of_a_chip_is_what_the_compiler_says_it_is(libtpu):
  result = run_python('-m', 'tests.compile.memory_worker')
  assert json.loads(result.stdout) == {name: kind.memory_gib for name, kind in topology.GENERATIONS.items()}


def test_weights_are_never_shared_between_two_slices(libtpu):
  """Which no machine here has, and a topology has."""
  finished = compile_tiny('--topology', 'v5e:2x4', '--num_slices', '2', '--config.mesh.fsdp=16', check=False)
  assert finished.returncode == 1
  assert finished.stderr.startswith('error: mesh.fsdp 16 does not divide the 8 devices of a slice')
  assert finished.stderr.count('\n') == 1
