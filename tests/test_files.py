import os
import resource

import numpy as np
import pytest

from selfie_jax import files
from selfie_jax.embedding.files import Block, write
from selfie_jax.errors import UserError, summary
from selfie_jax.files import as_path, check_reachable, list_files, missing_files, write_atomically
from tests.object_stores import _gcs_settings, _s3_settings, connected, gcs, s3  # noqa: F401


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
  path = tmp_path / 'a.bin'
  with write_atomically(path) as file:
    file.write(b'new')
    file.flush()
    assert not path.exists()
  assert path.read_bytes() == b'new'
  assert os.listdir(tmp_path) == ['a.bin']


@pytest.mark.parametrize('moment', ['writing', 'renaming'])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, moment):
  path = tmp_path / 'a.bin'
  path.write_bytes(b'old')

  def fail(*_):
    raise OSError('disk full')

  def write():
    with write_atomically(path) as file:
      file.write(b'half of the n')
      if moment == 'writing':
        fail()

  if moment == 'renaming':
    monkeypatch.setattr(os, 'replace', fail)
  with pytest.raises(OSError, match='disk full'):
    write()
  assert path.read_bytes() == b'old'
  assert os.listdir(tmp_path) == ['a.bin']


@pytest.fixture
def little_room():
  """Files of more than 10 KB are refused, as by a disk that is full: the error names no file either."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('name', ['a.bin', 'a.npz', 'a.parquet'])
def test_what_cannot_be_written_whole_is_named(tmp_path, little_room, name):
  path = tmp_path / name

  def write_too_much():
    if name != 'a.bin':
      write(path, [Block(np.random.default_rng(0).normal(size=(100, 64)), ['x'] * 100, {})])
    with write_atomically(path) as file:
      file.write(bytes(20_000))

  with pytest.raises(OSError, match='too large') as caught:
    write_too_much()
  assert summary(caught.value) == f'{path}: File too large'
  assert os.listdir(tmp_path) == []


def test_two_that_write_the_same_file_do_not_write_into_each_other(tmp_path):
  path = tmp_path / 'a.bin'
  with write_atomically(path) as first:
    with write_atomically(path) as second:
      first.write(b'first')
      second.write(b'second, and longer')
    assert path.read_bytes() == b'second, and longer'
  assert path.read_bytes() == b'first'
  assert os.listdir(tmp_path) == ['a.bin']


@pytest.mark.parametrize('store', ['gcs', 's3'])
def test_an_object_store_is_written_and_listed_like_a_folder(request, store):
  folder = as_path(request.getfixturevalue(store)) / 'a'
  assert list_files(folder) == {}
  with write_atomically(folder / 'b.bin') as file:
    file.write(b'hello')
    file.flush()
    assert not (folder / 'b.bin').exists()
  before = list_files(folder)
  assert before['b.bin'].size == 5
  with write_atomically(folder / 'b.bin') as file:
    file.write(b'world')
  assert list_files(folder)['b.bin'] != before['b.bin']
  assert missing_files([folder / 'b.bin', folder / 'c.bin']) == [folder / 'c.bin']
  check_reachable(folder / 'not there')
  with pytest.raises(UserError, match='there is no bucket .*nowhere'):
    check_reachable(f'{str(folder)[:5]}nowhere/a')


def test_a_store_that_does_not_answer_is_named_at_once(monkeypatch, _gcs_settings):  # noqa: F811, PT019
  monkeypatch.setattr(files, 'CONNECT_SECONDS', 0.5)
  settings = _gcs_settings | {'STORAGE_EMULATOR_HOST': 'http://127.0.0.1:1'}
  with connected(settings), pytest.raises(UserError, match='the bucket gs://sounds does not answer within 0.5 s'):
    check_reachable('gs://sounds/a')
