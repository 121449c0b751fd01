import pytest
from quickstart_data import fetch


@pytest.fixture(scope='session')
def downloads(pytestconfig):
  """The quick start's recordings, fetched once for all runs of the tests."""
  folder = pytestconfig.cache.mkdir('quickstart_downloads')
  fetch(folder)
  return folder
