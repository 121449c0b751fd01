"""Fetching the packages that ship the sounds: each at one version, checked by its checksum.

packages.txt lists them. Those of Debian come by apt-get and are unpacked by dpkg-deb; those of PyPI, by pip.
"""

import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from selfie_jax.errors import UserError
from selfie_jax.terminal import console

Unpacked = Mapping[str, Path]  # A package's name -> the folder with its files.

_DEBIAN = 'debian'
_ONLINE = {
  _DEBIAN: 'Debian 12 (bookworm) has this package: is it what runs here, after an apt-get update, and online?',
  'pypi': 'PyPI has this package: is the machine online?',
}


@dataclasses.dataclass(frozen=True)
class Package:
  """A package at one version."""

  origin: str  # 'debian' or 'pypi'.
  name: str
  version: str
  sha256: str  # Of the .deb or the .whl.


def _read_list(path: Path) -> tuple[Package, ...]:
  return tuple(Package(*line.split()) for line in path.read_text().splitlines() if not line.startswith('#'))


PACKAGES = _read_list(Path(__file__).with_name('packages.txt'))


def fetch(package: Package, cache: Path) -> Path:
  """Downloads a package and unpacks it; returns the folder that it is in, at once if it is there already.

  Raises:
    UserError: its tools are not installed, it cannot be had, or it is not what it was.
    OSError: there is no space for it.
  """
  target = cache / f'{package.name}_{package.version}'
  if target.is_dir():
    return target
  cache.mkdir(parents=True, exist_ok=True)
  console.print(f'fetching {package.name} {package.version}')
  with tempfile.TemporaryDirectory(dir=cache, prefix='partial.') as partial:
    downloaded, unpacked = Path(partial, 'downloaded'), Path(partial, 'unpacked')
    downloaded.mkdir()
    _download(package, downloaded)
    (file,) = downloaded.iterdir()
    _check(package, file)
    _unpack(package, file, unpacked)
    os.rename(unpacked, target)  # So that a folder that is there is whole.
  return target


def _download(package: Package, folder: Path) -> None:
  if package.origin == _DEBIAN:
    command = ['apt-get', 'download', '--quiet', f'{package.name}={package.version}']
  else:
    pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check', '--timeout=20']
    command = [*pip, '--retries=2', '--no-deps', '--only-binary=:all:', f'{package.name}=={package.version}']
  _run(command, folder, f'cannot download {package.name} {package.version}', _ONLINE[package.origin])


def _check(package: Package, file: Path) -> None:
  with file.open('rb') as stream:
    found = hashlib.file_digest(stream, 'sha256').hexdigest()
  if found != package.sha256:
    raise UserError(
      f'{package.name} {package.version} is not what it was: its SHA-256 is {found}, and {package.sha256} is expected'
    )


def _unpack(package: Package, file: Path, target: Path) -> None:
  if package.origin == _DEBIAN:
    command = ['dpkg-deb', '--extract', str(file.absolute()), str(target.absolute())]
    _run(command, file.parent, f'cannot unpack {package.name} {package.version}', 'Is there space for it?')
  else:
    with zipfile.ZipFile(file) as archive:
      archive.extractall(target)


def _run(command: Sequence[str], folder: Path, complaint: str, remedy: str) -> None:
  """Runs a command in `folder`. It says nothing unless it fails, and then one line."""
  english = os.environ | {'LC_ALL': 'C'}
  try:
    ended = subprocess.run(command, cwd=folder, env=english, capture_output=True, text=True, check=False)
  except FileNotFoundError as error:
    raise UserError(f'{complaint}: {command[0]} is not installed. {remedy}') from error
  if ended.returncode:
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(('E:', 'ERROR', 'dpkg-deb: error'))]
    said = (errors or lines[-1:] or [f'{command[0]} ended with {ended.returncode}'])[0]
    raise UserError(f'{complaint} ({said.strip()}). {remedy}')
