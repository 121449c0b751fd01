"""Datasets in object stores: real clients and servers, and what a network does to them."""

import contextlib
import itertools
import os
import socket
import threading
import time

import numpy as np
import pytest

from selfie_jax.config import Data, LogMel
from selfie_jax.data import index_cache, pipeline, ranges, reader, verify
from selfie_jax.data.dataset import load_manifest, open_dataset
from selfie_jax.data.ranges import Range, read_ranges
from selfie_jax.data.source import open_data
from selfie_jax.errors import UserError
from selfie_jax.files import filesystem, write_atomically
from tests.data.sounds import flip_byte, voice_int16, write_dataset
from tests.object_stores import (
  _gcs_settings,  # noqa: F401
  _s3_settings,  # noqa: F401
  connected,
  gcs,  # noqa: F401
  s3,  # noqa: F401
  s3_server,
)

CLIPS = [voice_int16(1.2, i) for i in range(12)]
CROP = 15_200


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture
def served(tmp_path):
  """A dataset on the disk of a server, (its folder, its URL): what is done to the folder happens to the objects."""
  with s3_server(tmp_path) as (_, settings), connected(settings):
    yield write_dataset(tmp_path / 'bucket' / 'clips', CLIPS, 4), 's3://bucket/clips'


@contextlib.contextmanager
def stream(path, read='record', on_damage='stop'):
  """Yields the batches; nothing is read any more afterwards, or it would ask a server that is gone, for minutes."""
  data = Data(path=str(path), read=read, on_damage=on_damage, read_threads=1, prefetch_batches=1)
  batches = pipeline.batches(open_data(data, LogMel()), batch_size=6, crop_samples=CROP, seed=0, start_step=0)
  try:
    yield batches
  finally:
    batches.close()
    for thread in threading.enumerate():
      if thread.name.startswith('grain-prefetch'):
        thread.join()


def take(path, count, **changes):
  with stream(path, **changes) as batches:
    return list(itertools.islice(batches, count))


@pytest.mark.parametrize('store', ['gcs', 's3'])
def test_batches_from_an_object_store_are_those_of_the_local_disk(request, tmp_path, store):
  url = f'{request.getfixturevalue(store)}/clips'
  local, remote = write_dataset(tmp_path / 'clips', CLIPS, 4), write_dataset(url, CLIPS, 4)
  assert load_manifest(remote) == load_manifest(local)
  for read in ('record', 'crop'):
    for batch, other in zip(take(remote, 3, read=read), take(local, 3), strict=True):
      np.testing.assert_array_equal(batch['audio'], other['audio'])
  path = f'{url}/train-00000-of-00003.tfrecord'
  found = list(read_ranges([Range(path, 10**9, 5), Range(path, 0, 0), Range(f'{path}.gone', 0, 5), Range(path, 0, 5)]))
  assert found[:2] == [b'', b'']
  assert isinstance(found[2], FileNotFoundError)
  assert found[3] == (local / 'train-00000-of-00003.tfrecord').read_bytes()[:5]


@pytest.mark.parametrize('store', ['gcs', 's3'])
def test_an_object_arrives_whole_whatever_its_last_byte(request, store):
  path = f'{request.getfixturevalue(store)}/object'
  for data in (b'', b'\r', b'a\r\n', bytes(300_000) + b'\r', bytes(6_000_000) + b'\r'):
    with write_atomically(path) as file:
      file.write(data)
    assert filesystem(path).cat_file(path) == data


def test_indexes_are_fetched_once_and_a_damaged_copy_again(served):
  folder, url = served
  open_dataset(url)
  (cached,) = index_cache.cache_folder().iterdir()
  assert cached.stat().st_size == 12 * 28
  content = cached.read_bytes()
  flip_byte(cached, 30)
  open_dataset(url)
  assert cached.read_bytes() == content
  os.truncate(cached, 100)
  open_dataset(url)
  assert cached.read_bytes() == content
  filesystem(url).rm([f'{url}/{index.name}' for index in folder.glob('*.index')])  # Behind its back, rclone goes on.
  open_dataset(url)  # It is the right one by its hash, wherever it came from.
  cached.unlink()
  with pytest.raises(UserError, match=r'cannot read the index s3://bucket/clips/train-00000.*index: '):
    open_dataset(url)


def test_a_disk_that_keeps_no_cache_stops_nothing(served, tmp_path):
  (tmp_path / 'cache').write_bytes(b'')  # Not even a folder.
  assert len(open_dataset(served[1]).clips) == 12


def test_the_objects_are_checked_before_training_and_by_verify(served):
  folder, url = served
  clips = open_dataset(folder).clips
  where = clips.crop_range(clips.find(5), 100, 1)
  flip_byte(folder / 'train-00001-of-00003.tfrecord', where.start)
  problems = sum(verify.verify(url, load_manifest(url), 1), [])
  assert any(problem.startswith(f'record 1 of {url}/train-00001-of-00003.tfrecord is damaged') for problem in problems)
  assert len(problems) == 2  # And the SHA-256.
  with pytest.raises(UserError, match=f'^record 1 of {url}/train-00001-of-00003.tfrecord is damaged'):
    take(url, 2)
  filesystem(url).rm(f'{url}/train-00001-of-00003.tfrecord')
  with pytest.raises(UserError, match=f'{url} lacks the shard train-00001-of-00003.tfrecord'):
    open_dataset(url)
  with pytest.raises(UserError, match=f'no dataset at {url}x'):
    open_dataset(f'{url}x')


@pytest.mark.parametrize('read', ['record', 'crop'])
def test_an_object_replaced_while_training_is_named(served, tmp_path, monkeypatch, read):
  folder, url = served
  others = write_dataset(tmp_path / 'others', [voice_int16(1.2, 100 + i) for i in range(12)], 4)
  monkeypatch.setattr(reader, '_LISTING_SECONDS', 0.0)
  with stream(url, read) as batches:
    next(batches)
    for file in others.glob('*.tfrecord'):
      os.replace(file, folder / file.name)  # At once: a request in between must not find half of it.
    with pytest.raises(UserError, match=rf'record \d of {url}/train.*: the shard was replaced'):
      list(itertools.islice(batches, 3))


def test_an_object_lost_while_training_is_named(served):
  folder, url = served
  with stream(url) as batches:
    next(batches)
    filesystem(url).rm([f'{url}/{file.name}' for file in folder.glob('*.tfrecord')])
    with pytest.raises(UserError, match=rf'cannot read record \d of {url}/train.*: no such object'):
      list(itertools.islice(batches, 3))


def free_port():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def pump(source, target):
  with contextlib.suppress(OSError):
    while data := source.recv(65_536):
      target.sendall(data)
  for end in (source, target):
    with contextlib.suppress(OSError):
      end.shutdown(socket.SHUT_RDWR)


def relay(port, target, stop):
  """Passes connections on to another port of this machine, until `stop` is set."""
  with socket.create_server(('127.0.0.1', port)) as server:
    server.settimeout(0.1)
    while not stop.is_set():
      with contextlib.suppress(TimeoutError):
        client, _ = server.accept()
        upstream = socket.create_connection(('127.0.0.1', target))
        for ends in ((client, upstream), (upstream, client)):
          threading.Thread(target=pump, args=ends, daemon=True).start()


def test_a_store_that_is_down_for_a_while_is_waited_for(tmp_path, monkeypatch):
  (tmp_path / 'bucket').mkdir()
  (tmp_path / 'bucket' / 'file').write_bytes(bytes(range(100)))
  monkeypatch.setenv('AWS_MAX_ATTEMPTS', '1')  # Of the client itself, below ours.
  monkeypatch.setattr(ranges, 'FIRST_PAUSE_SECONDS', 0.2)
  port, stop = free_port(), threading.Event()
  with s3_server(tmp_path) as (_, settings):
    target = int(settings['AWS_ENDPOINT_URL'].rpartition(':')[2])
    with connected(settings | {'AWS_ENDPOINT_URL': f'http://127.0.0.1:{port}'}):
      timer = threading.Timer(1.0, relay, (port, target, stop))
      timer.start()
      begin = time.monotonic()
      try:
        found = list(read_ranges([Range('s3://bucket/file', i, 3) for i in range(90)]))
      finally:
        stop.set()
        timer.join()
  assert time.monotonic() - begin > 0.9
  assert found == [bytes([i, i + 1, i + 2]) for i in range(90)]


@contextlib.contextmanager
def answering(answer):
  """A server that gives everybody this answer, or, without one, listens and says nothing; yields its URL."""
  stop = threading.Event()

  def serve(server):
    clients = []
    while not stop.is_set():
      with contextlib.suppress(OSError):  # Of the time-out, too.
        clients.append(server.accept()[0])
        if answer:
          clients[-1].recv(65_536)
          clients.pop().sendall(answer)

  with socket.create_server(('127.0.0.1', 0)) as server:
    server.settimeout(0.1)
    thread = threading.Thread(target=serve, args=(server,))
    thread.start()
    try:
      yield f'http://127.0.0.1:{server.getsockname()[1]}'
    finally:
      stop.set()
      thread.join()


FAILURE = b'HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'


@pytest.mark.parametrize('scheme', ['gs', 's3'])
@pytest.mark.parametrize('server', ['dead', 'silent', 'failing'])
def test_a_store_that_is_of_no_use_is_given_up_in_time_and_the_object_named(monkeypatch, scheme, server):
  monkeypatch.setattr(ranges, 'TIMEOUT_SECONDS', 0.5)
  monkeypatch.setattr(ranges, 'PATIENCE_SECONDS', 1.0)
  monkeypatch.setattr(ranges, 'FIRST_PAUSE_SECONDS', 0.05)
  with contextlib.ExitStack() as stack:
    url = f'http://127.0.0.1:{free_port()}'
    if server != 'dead':
      url = stack.enter_context(answering(FAILURE if server == 'failing' else b''))
    settings = {'AWS_ENDPOINT_URL': url, 'AWS_ACCESS_KEY_ID': 'x', 'AWS_SECRET_ACCESS_KEY': 'x', 'AWS_REGION': 'eu'}
    settings |= {'STORAGE_EMULATOR_HOST': url, 'FSSPEC_GS': '{"token": "anon"}'}
    stack.enter_context(connected(settings))
    begin = time.monotonic()
    with pytest.raises(UserError, match=rf'^cannot read {scheme}://bucket/b: \d attempts in .* s failed, the last'):
      list(read_ranges([Range(f'{scheme}://bucket/b', 0, 3)]))
    assert 1 <= time.monotonic() - begin < 10  # Of 1.5, on a busy machine. Its client alone would take 30 or more.


def test_a_store_that_refuses_is_not_asked_again(served):
  with connected({'AWS_SECRET_ACCESS_KEY': 'wrong'}):
    begin = time.monotonic()
    with pytest.raises(UserError, match='cannot read s3://bucket/clips/manifest.json: PermissionError'):
      list(read_ranges([Range('s3://bucket/clips/manifest.json', 0, 3)]))
    assert time.monotonic() - begin < 5
