import os

import pytest

from selfie_jax.files import write_atomically


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


def test_two_that_write_the_same_file_do_not_write_into_each_other(tmp_path):
  path = tmp_path / 'a.bin'
  with write_atomically(path) as first:
    with write_atomically(path) as second:
      first.write(b'first')
      second.write(b'second, and longer')
    assert path.read_bytes() == b'second, and longer'
  assert path.read_bytes() == b'first'
  assert os.listdir(tmp_path) == ['a.bin']
