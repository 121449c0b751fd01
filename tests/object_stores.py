"""Real object-storage servers on this machine: Google's by gcp-storage-emulator, Amazon's by `rclone serve s3`.

Use the fixtures `gcs` and `s3` (import both where they are used): the URL of an empty bucket, for this process and for
those that it starts. A test that ends a server itself takes the context managers below them.
"""

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
import s3fs
from etils import epath

# gcsfs reads it as it is imported, and would else wait for a gRPC endpoint, for minutes.
os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'] = 'false'
import gcsfs  # noqa: E402

_GCS_SETTINGS = {
  'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'x',
  'NO_GCE_CHECK': 'true',
  'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
  'FSSPEC_GS': '{"token": "anon"}',
}
_S3_KEY, _S3_SECRET = 'testkey1', 'testsecret1'
_S3_SETTINGS = {
  'AWS_ACCESS_KEY_ID': _S3_KEY,
  'AWS_SECRET_ACCESS_KEY': _S3_SECRET,
  'AWS_REGION': 'us-east-1',
  'AWS_DEFAULT_REGION': 'us-east-1',
  'AWS_EC2_METADATA_DISABLED': 'true',
  # rclone sends none for a range.
  'AWS_RESPONSE_CHECKSUM_VALIDATION': 'when_required',
  'AWS_REQUEST_CHECKSUM_CALCULATION': 'when_required',
}
# Python's servers let 5 connections wait; of the clients' dozens the others would try again only after 1, 3, 7 seconds.
_LONGER_QUEUE = 'import socketserver; socketserver.TCPServer.request_queue_size = 128'
_bucket_numbers = itertools.count()


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


@contextlib.contextmanager
def _serving(command, port):
  """Runs a server; yields its process once it listens."""
  process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  try:
    for _ in range(200):
      with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), timeout=1):
        break
      assert process.poll() is None, f'{command} ended with {process.returncode}'
      time.sleep(0.05)
    else:
      raise AssertionError(f'{command} does not listen')
    yield process
  finally:
    process.kill()
    process.wait()


class Gate:
  """A port in front of a server's. Shut, it cuts what is connected and refuses the rest: the server is gone."""

  def __init__(self, server_port):
    self._server = ('127.0.0.1', server_port)
    self.port = _free_port()
    self.open()

  def open(self):
    self._connections = []
    self._listener = socket.create_server(('127.0.0.1', self.port), backlog=128)
    threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

  def shut(self):
    for connection in (self._listener, *self._connections):
      with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
      connection.close()

  def _accept(self, listener):
    with contextlib.suppress(OSError):  # It is shut.
      while True:
        ends = listener.accept()[0], socket.create_connection(self._server)
        self._connections += ends
        for source, sink in (ends, ends[::-1]):
          threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

  @staticmethod
  def _pass_on(source, sink):
    with contextlib.suppress(OSError):
      while received := source.recv(2**16):
        sink.sendall(received)
      sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def gated_gcs_server():
  """Yields (its `Gate`, the environment of its clients)."""
  with gcs_server() as (_, settings):
    url = settings['STORAGE_EMULATOR_HOST']
    gate = Gate(int(url.rpartition(':')[2]))
    try:
      # A file's address, as the server tells it, is its own: nothing asks it there.
      gated = f'http://127.0.0.1:{gate.port}'
      yield gate, settings | {'STORAGE_EMULATOR_HOST': gated, 'TENSORSTORE_GCS_HTTP_URL': gated}
    finally:
      gate.shut()


@contextlib.contextmanager
def gcs_server():
  """Serves nothing yet; yields (its process, the environment of its clients)."""
  port = _free_port()
  url = f'http://127.0.0.1:{port}'
  server = f"create_server('127.0.0.1', {port}, in_memory=True).run()"
  command = [sys.executable, '-c', f'{_LONGER_QUEUE}; from gcp_storage_emulator.server import create_server; {server}']
  with _serving(command, port) as process:
    yield process, _GCS_SETTINGS | {'STORAGE_EMULATOR_HOST': url, 'TENSORSTORE_GCS_HTTP_URL': url}


@contextlib.contextmanager
def s3_server(folder):
  """Serves the folders in `folder` as buckets; yields (its process, the environment of its clients)."""
  port = _free_port()
  rclone = Path(sys.executable).with_name('rclone')
  command = [rclone, 'serve', 's3', '--auth-key', f'{_S3_KEY},{_S3_SECRET}', '--addr', f'127.0.0.1:{port}', folder]
  with _serving(command, port) as process:
    yield process, _S3_SETTINGS | {'AWS_ENDPOINT_URL': f'http://127.0.0.1:{port}'}


@contextlib.contextmanager
def connected(settings):
  """Lets this process, and those that it starts, talk to the server that `settings` name, and to none afterwards."""
  with pytest.MonkeyPatch.context() as patch:
    for name, value in settings.items():
      patch.setenv(name, value)
    if 'FSSPEC_GS' in settings:  # fsspec reads the variable only once, as it is imported.
      patch.setitem(fsspec.config.conf, 'gs', fsspec.config.conf.get('gs', {}) | {'token': 'anon'})
    _forget_connections()
    try:
      yield
    finally:
      _forget_connections()


def _forget_connections():
  gcsfs.GCSFileSystem.clear_instance_cache()
  s3fs.S3FileSystem.clear_instance_cache()
  epath.backend.fsspec_backend._get_filesystem.cache_clear()


def make_bucket(protocol):
  """Makes a bucket on the server that this process is connected to, and returns its URL."""
  name = f'bucket-{next(_bucket_numbers)}'
  fsspec.filesystem(protocol, **({'project': 'test'} if protocol == 'gs' else {})).mkdir(name)
  return f'{protocol}://{name}'


@pytest.fixture(scope='session')
def _gcs_settings():
  with gcs_server() as (_, settings):
    yield settings


@pytest.fixture(scope='session')
def _s3_settings(tmp_path_factory):
  with s3_server(tmp_path_factory.mktemp('s3')) as (_, settings):
    yield settings


@pytest.fixture
def gcs(_gcs_settings):
  """The URL of an empty bucket, gs://..."""
  with connected(_gcs_settings):
    yield make_bucket('gs')


@pytest.fixture
def s3(_s3_settings):
  """The URL of an empty bucket, s3://..."""
  with connected(_s3_settings):
    yield make_bucket('s3')
