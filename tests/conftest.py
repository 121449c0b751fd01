"""What all tests share."""

import os
import sys
import tempfile

import hypothesis
import pytest

from tests.processes import COMPILATION_CACHE, ROOT

os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # Tolerances are for CPUs; their virtual devices are the meshes.
sys.path.insert(0, str(ROOT / 'launch'))  # Its files are scripts: beside each other, in no package.
hypothesis.settings.register_profile('untimed', deadline=None)  # A loaded machine is no mistake of the code's.
hypothesis.settings.load_profile('untimed')


def pytest_configure(config):
  if COMPILATION_CACHE not in os.environ:  # pytest-xdist's workers find it there, and share one cache.
    folder = tempfile.TemporaryDirectory(prefix='selfie_jax_tests_')
    config.add_cleanup(folder.cleanup)
    os.environ[COMPILATION_CACHE] = folder.name


@pytest.fixture(autouse=True)
def _no_compilation_cache_is_left_behind():
  """A command that a test calls keeps programs beside its workdir, which later tests would look for in vain.

  In a bucket whose server has ended, they would do so for minutes.
  """
  yield
  if 'jax' in sys.modules:
    jax = sys.modules['jax']
    if jax.config.jax_compilation_cache_dir != os.environ.get('JAX_COMPILATION_CACHE_DIR'):
      from jax.experimental.compilation_cache import compilation_cache

      jax.config.update('jax_compilation_cache_dir', os.environ.get('JAX_COMPILATION_CACHE_DIR'))
      compilation_cache.reset_cache()


def require(part, available):
  """Skips a test whose `part` is missing, or fails it where SELFIE_REQUIRE (a comma list) says it must be there."""
  if available:
    return
  if part in os.environ.get('SELFIE_REQUIRE', '').split(','):
    pytest.fail(f'{part} is missing, and SELFIE_REQUIRE names it')
  pytest.skip(f'{part} is not installed')
