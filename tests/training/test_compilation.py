import json
import os

import pytest

from selfie_jax.files import as_path
from selfie_jax.training.programs.compilation import CheckedCache, remove_oldest
from tests.object_stores import _gcs_settings, gcs  # noqa: F401
from tests.processes import run_python

KEYS = ('JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS')


@pytest.fixture
def cache(tmp_path):
  return CheckedCache(str(tmp_path))


def files(folder):
  return sorted(folder.iterdir())


@pytest.mark.parametrize('place', ['tmp_path', 'gcs'])
def test_a_program_comes_back_as_it_was_kept(place, request):
  folder = as_path(request.getfixturevalue(place)) / 'compilation_cache'
  cache = CheckedCache(str(folder))
  assert cache.get('key') is None
  cache.put('key', b'program')
  assert cache.get('key') == b'program'
  assert len(files(folder)) == 1


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'flipped', 'of another key'])
def test_a_damaged_program_is_compiled_again_and_replaced(cache, tmp_path, capfd, damage):
  cache.put('key', bytes(1_000))
  (path,) = files(tmp_path)
  data = bytearray(path.read_bytes())
  if damage == 'flipped':
    data[500] ^= 1
  elif damage == 'of another key':
    cache.put('other', bytes(1_000))
    data = next(file for file in files(tmp_path) if file != path).read_bytes()
  path.write_bytes(data[: {'truncated': 700, 'empty': 0}.get(damage)])
  assert cache.get('key') is None
  assert 'is damaged: compiling it again' in capfd.readouterr().err
  cache.put('key', b'new')
  assert cache.get('key') == b'new'


def test_what_has_not_been_used_for_longest_goes_first_and_what_a_kill_left_of_a_file(cache, tmp_path):
  for i, key in enumerate('abc'):
    cache.put(key, bytes(100))
    os.utime(next(file for file in files(tmp_path) if file.name.startswith(key)), (i, i))
  cache.get('a')
  (tmp_path / 'd-0.program.1234.tmp').touch()
  (tmp_path / 'e-0.program.1234.tmp').touch()
  os.utime(tmp_path / 'e-0.program.1234.tmp', (0, 0))
  remove_oldest(tmp_path, most_bytes=300)
  assert [file.name[0] for file in files(tmp_path)] == ['a', 'c', 'd']


PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from selfie_jax.files import as_path
from selfie_jax.training.programs import compilation

compilation.use_cache(as_path(sys.argv[1]))

@jax.jit
def program(x):
  for _ in range(60):
    x = jnp.sort(jnp.tanh(x @ x.T / 64), axis=-1) + jnp.cos(x)
  return x.sum()

compiled = program.lower(jnp.ones((64, 64))).compile()
value = float(compiled(jnp.linspace(0, 1, 4096).reshape(64, 64)))
print(json.dumps({'value': value.hex(), 'flops': compilation.flops_of(compiled)}))
"""


def test_a_restart_reads_its_program_from_beside_the_workdir_and_a_damaged_one_changes_nothing(tmp_path):
  def start():
    environment = {key: '' for key in KEYS} | {KEYS[1]: '0.02'}  # The tests' own cache is out of the way.
    process = run_python('-c', PROGRAM, tmp_path / 'run', **environment)
    return json.loads(process.stdout), process.stderr

  cold, _ = start()
  programs = [file for file in files(tmp_path / 'compilation_cache') if file.name.startswith('jit_program')]
  assert len(programs) == 1
  os.utime(programs[0], (0, 0))
  before = programs[0].stat()
  warm, _ = start()
  after = programs[0].stat()
  assert after.st_mtime > before.st_mtime  # It was read,
  assert after.st_ino == before.st_ino  # and not written.
  assert (warm['value'], warm['flops']) == (cold['value'], cold['flops'])
  assert 'nan' not in cold['value']
  assert warm['flops'] > 60 * 2 * 64**3
  whole = programs[0].read_bytes()
  programs[0].write_bytes(whole[: len(whole) // 2])
  again, errors = start()
  assert again['value'] == cold['value']
  assert errors.count('is damaged: compiling it again') == 1
  assert programs[0].stat().st_size > len(whole) // 2


def test_a_run_whose_neighbourhood_cannot_be_written_to_goes_without_a_cache(tmp_path):
  (tmp_path / 'compilation_cache').write_text('a file')
  process = run_python('-c', PROGRAM, tmp_path / 'run', **dict.fromkeys(KEYS[:1], ''))
  assert 'no compilation cache, a restart compiles again' in process.stderr
  assert 'Warning' not in process.stderr
