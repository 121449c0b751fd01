"""Embeds audio: `python -m selfie_jax.embed --workdir DIR --output OUT (FILES_OR_FOLDERS... | --csv metadata.csv)`.

DIR is a training run's folder, whose newest checkpoint is taken, or a folder with a `model.safetensors`. OUT is written
in the order given, in the format of its ending:
  .npz      two arrays: `embeddings` (n, d) float32, a vector a file; and `files` (n,), their names as given
  .parquet  the columns `file` and `embedding`, and the other ones of the CSV, as they stand there
Of a folder all audio files in it and below are embedded, sorted by name.

An embedding is what `selfie_jax.load(DIR).embed` gives: see `audio_encoder.py`. A file that cannot be embedded ends it,
and nothing is written; with --skip_broken, it is named and left out. Memory does not grow with the number of files, but
for their names.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from selfie_jax.command_line import open_workdir
from selfie_jax.data import audio_files
from selfie_jax.data.table import read_table, require
from selfie_jax.embedding import files as embedding_files
from selfie_jax.embedding.audio_encoder import check_fits
from selfie_jax.embedding.clips import decode_clips
from selfie_jax.embedding.embeddings import embed_clips
from selfie_jax.embedding.files import Block
from selfie_jax.errors import ArgumentParser, ClusterError, UserError, run_command
from selfie_jax.files import as_path, check_reachable, filesystem, is_remote, missing_files
from selfie_jax.sharing.loading import load_encoder
from selfie_jax.terminal import console, progress_bar
from selfie_jax.training.state import LoadedEncoder

_FILES_AT_ONCE = 4_096  # Their embeddings are in memory: 50 MB of AudioNTT2022's.


@dataclasses.dataclass(frozen=True)
class Listing:
  """The files to embed."""

  names: list[str]  # As given.
  paths: list[str]
  columns: dict[str, list[str]]  # What else a CSV says of them.

  def take(self, rows: Sequence[int]) -> 'Listing':
    """Returns some of the files."""
    columns = {name: [column[row] for row in rows] for name, column in self.columns.items()}
    return Listing([self.names[row] for row in rows], [self.paths[row] for row in rows], columns)


def main(arguments: Sequence[str]) -> None:
  """Runs the embedding command."""
  parser = ArgumentParser(prog='python -m selfie_jax.embed', description='Embeds audio files with a trained encoder.')
  parser.add_argument('--workdir', required=True, help="the training run's folder, or one with a model.safetensors")
  parser.add_argument('--output', required=True, help='the .npz or .parquet file to write')
  parser.add_argument('--csv', help='a CSV with a column file_name, relative to the CSV, instead of FILES')
  parser.add_argument('--skip_broken', action='store_true', help='leave out what cannot be embedded, and name it')
  parser.add_argument('files', nargs='*', metavar='FILES', help='audio files, and folders of such')
  options = parser.parse_args(arguments)
  if bool(options.files) == bool(options.csv):
    raise UserError('give either FILES or --csv, and not both')
  _check_output(options.output)
  listing = _of_csv(options.csv, options.output) if options.csv else _of_arguments(options.files)
  total = len(listing.paths)
  listing = _existing(listing, options.skip_broken)
  run = load_encoder(open_workdir(options.workdir))
  with progress_bar('embedding', len(listing.names), 'files') as show:
    blocks = embed_files(listing, run, skip_broken=options.skip_broken, show=show)
    count = embedding_files.write(options.output, blocks)
  left_out = f' ({total - count:,} of {total:,} files are left out)' if count < total else ''
  features = run.encoder.features
  step = '' if run.step is None else f', step {run.step:,}'
  console.print(f'{count:,} embeddings of {features} dimensions{step}: {options.output}{left_out}')


def _check_output(output: str) -> None:
  embedding_files.check_ending(output)
  check_reachable(os.path.dirname(output))
  folder = os.path.dirname(output) or '.'
  if not is_remote(output) and not os.path.isdir(folder):
    raise UserError(f'{folder} does not exist: make the folder, or give another --output')


def _of_csv(csv: str, output: str) -> Listing:
  """Returns the files of a CSV, which lie relative to it, and its other columns."""
  check_reachable(csv)
  table = as_path(csv)
  rows = read_table(table)
  require(rows, ('file_name',), table)
  columns = {name: [row.get(name, '') for row in rows] for name in rows[0]}
  names = columns.pop('file_name')
  if output.endswith('.parquet') and (taken := {'file', 'embedding'} & set(columns)):
    raise UserError(f'{csv} has a column "{min(taken)}", as the output will have one: give it another name')
  return Listing(names, [str(table.parent / name) for name in names], columns)


def _of_arguments(names: Sequence[str]) -> Listing:
  """Returns the files given, and in the place of each folder the audio files in it and below."""
  found: list[str] = []
  for name in names:
    found += _in_folder(name) if _is_folder(name) else [name]
  return Listing(found, found, {})


def _is_folder(name: str) -> bool:
  if not is_remote(name):
    return os.path.isdir(name)
  check_reachable(name)
  return as_path(name).suffix.lower() not in audio_files.SUFFIXES and filesystem(name).isdir(name)


def _in_folder(folder: str) -> list[str]:
  names = (found.name for found in audio_files.find(folder))
  audio = sorted(name for name in names if os.path.splitext(name)[1].lower() in audio_files.SUFFIXES)
  if not audio:
    raise UserError(f'{folder} has no audio files: none of the endings {" ".join(sorted(audio_files.SUFFIXES))}')
  return [f'{folder.rstrip("/")}/{name}' for name in audio]


def _existing(listing: Listing, skip_broken: bool) -> Listing:
  """Returns the files that exist.

  Raises:
    UserError: there are others, and they are not to be left out.
  """
  paths = listing.paths
  for folder in {os.path.dirname(path) for path in paths if is_remote(path)}:
    check_reachable(folder)
  missing = {str(path) for path in missing_files([as_path(path) for path in paths if is_remote(path)])}
  missing |= {path for path in paths if not is_remote(path) and not os.path.isfile(path)}
  if not missing:
    return listing
  there = [row for row, path in enumerate(paths) if path not in missing]
  first = next(path for path in paths if path in missing)
  if not skip_broken or not there:
    raise UserError(f'{len(paths) - len(there)} of {len(paths)} files do not exist, the first is {first}')
  for path in paths:
    if path in missing:
      console.print(f'left out: {path} does not exist')
  return listing.take(there)


def embed_files(
  listing: Listing, run: LoadedEncoder, *, skip_broken: bool, show: Callable[[int], None]
) -> Iterator[Block]:
  """Yields the embeddings of files, in their order, some thousand at a time.

  Args:
    listing: the files.
    run: the encoder.
    skip_broken: leave out those that cannot be embedded, and print why.
    show: takes how many are done.

  Raises:
    UserError: a file cannot be embedded, and is not to be left out; or none can be.
  """
  total, none_yet = len(listing.paths), True
  for begin in range(0, total, _FILES_AT_ONCE):
    part = listing.take(range(begin, min(total, begin + _FILES_AT_ONCE)))
    rows: list[int] = []
    clips = _noted(_clips(part.paths, run, skip_broken=skip_broken), rows, begin, show)
    first = next(clips, None)
    if first is None:
      continue
    embeddings = embed_clips(
      run.encoder,
      itertools.chain([first], clips),
      run.config.log_mel,
      run.mean,
      run.std,
      min_samples=run.config.crop_samples,
    )
    part = part.take(rows)
    yield Block(embeddings, part.names, part.columns)
    none_yet = False
  if none_yet:
    raise UserError(f'none of the {total} files can be embedded, and nothing is written')


def _noted(
  clips: Iterable[tuple[int, np.ndarray]], rows: list[int], begin: int, show: Callable[[int], None]
) -> Iterator[np.ndarray]:
  """Yields clips, appends to `rows` which ones they are, and shows how far it is."""
  for row, clip in clips:
    rows.append(row)
    yield clip
    show(begin + row + 1)


def _clips(paths: Sequence[str], run: LoadedEncoder, *, skip_broken: bool) -> Iterator[tuple[int, np.ndarray]]:
  """Yields each file's number and samples, of those that can be embedded."""
  row = 0
  while row < len(paths):
    try:
      for clip in decode_clips(paths[row:], run.config.log_mel.sample_rate):
        check_fits(run, len(clip), paths[row])
        yield row, clip
        row += 1
    except UserError as error:
      if not skip_broken or isinstance(error, ClusterError):
        raise
      console.print(f'left out: {error}')
      row += 1


if __name__ == '__main__':
  run_command(main)
