"""What all tests share."""

import os
import sys

import pytest

from tests.processes import ROOT

os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # Tolerances are for CPUs; their virtual devices are the meshes.
sys.path.insert(0, str(ROOT / 'launch'))  # Its files are scripts: beside each other, in no package.


def require(part, available):
  """Skips a test whose `part` is missing, or fails it where SELFIE_REQUIRE (a comma list) says it must be there."""
  if available:
    return
  if part in os.environ.get('SELFIE_REQUIRE', '').split(','):
    pytest.fail(f'{part} is missing, and SELFIE_REQUIRE names it')
  pytest.skip(f'{part} is not installed')
