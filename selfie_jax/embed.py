"""Embeds files: `python -m selfie_jax.embed --workdir DIR --output out.npz (FILES... | --csv metadata.csv)`.

Writes an .npz file with two arrays, in the order given: `embeddings` (n, d) float32, a vector a file, by the run's
newest checkpoint; and `files` (n,), their names as given. The log-mel input is z-scored with the statistics of the data
set that the run was trained on. A file that cannot be read ends it, and nothing is written.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from etils import epath

from selfie_jax.command_line import open_workdir
from selfie_jax.data.table import read_table, require
from selfie_jax.errors import ArgumentParser, UserError, run_command
from selfie_jax.evaluation.clips import decode_clips
from selfie_jax.evaluation.embeddings import check_length, embed_clips
from selfie_jax.files import PathLike, as_path, check_reachable, is_remote, missing_files, write_atomically
from selfie_jax.models.vit import ViT
from selfie_jax.terminal import console, progress
from selfie_jax.training.checkpointing.checkpoints import LoadedEncoder, load_encoder

# A clip goes through the encoder whole. These take 3 GB of memory; a transformer's grows with the square of the tokens.
_MOST_SECONDS = 600
_MOST_TOKENS = 4_500


def main(arguments: Sequence[str]) -> None:
  """Runs the embedding command."""
  parser = ArgumentParser(prog='python -m selfie_jax.embed', description='Embeds audio files with a trained encoder.')
  parser.add_argument('--workdir', required=True, help="the training run's folder")
  parser.add_argument('--output', required=True, type=as_path, help='the .npz file to write')
  parser.add_argument(
    '--csv', type=as_path, help='a CSV with a column file_name, relative to the CSV, instead of FILES'
  )
  parser.add_argument('files', nargs='*', metavar='FILES', help='audio files')
  options = parser.parse_args(arguments)
  if bool(options.files) == bool(options.csv):
    raise UserError('give either FILES or --csv, and not both')
  check_reachable(options.csv or '')
  names, files = _listed(options.csv) if options.csv else (options.files, list(map(as_path, options.files)))
  for folder in {path.parent for path in (options.output, *files)}:
    check_reachable(folder)
  missing = missing_files(files)
  if missing:
    raise UserError(f'{len(missing)} of {len(files)} files do not exist, the first is {missing[0]}')
  if not is_remote(options.output) and not options.output.parent.is_dir():
    raise UserError(f'{options.output.parent} does not exist: make the folder, or give another --output')

  run = load_encoder(open_workdir(options.workdir))
  clips = short_enough(decode_clips(files, run.config.log_mel.sample_rate), files, run)
  embeddings = embed_clips(
    run.encoder,
    progress(clips, 'embedding', len(files)),
    run.config.log_mel,
    run.mean,
    run.std,
    min_samples=run.config.crop_samples,
  )
  save(options.output, embeddings, names)
  console.print(f'{len(names):,} embeddings of {embeddings.shape[1]} dimensions, step {run.step:,}: {options.output}')


def _listed(table: epath.Path) -> tuple[list[str], list[epath.Path]]:
  """Returns the file names in a CSV and where the files are."""
  rows = read_table(table)
  require(rows, ('file_name',), table)
  names = [row['file_name'] for row in rows]
  return names, [table.parent / name for name in names]


def _most_seconds(run: LoadedEncoder) -> float:
  if not isinstance(run.encoder, ViT):
    return _MOST_SECONDS
  seconds_of_step = run.encoder.frame_stride * run.config.log_mel.hop_length / run.config.log_mel.sample_rate
  return _MOST_TOKENS // run.encoder.mel_patches * seconds_of_step


def short_enough(clips: Iterable[np.ndarray], files: Sequence[epath.Path], run: LoadedEncoder) -> Iterator[np.ndarray]:
  """Yields the clips; the first that is too long to go through the encoder in one pass raises UserError."""
  sample_rate, most_seconds = run.config.log_mel.sample_rate, _most_seconds(run)
  for clip, file in zip(clips, files, strict=True):
    if len(clip) > most_seconds * sample_rate:
      raise UserError(
        f'{file} lasts {len(clip) / sample_rate:.0f} s and at most {most_seconds:g} s fit into one embedding: cut it'
      )
    check_length(run.encoder, len(clip), run.config.log_mel, what=str(file))
    yield clip


def save(path: PathLike, embeddings: np.ndarray, names: Sequence[str]) -> None:
  """Writes the .npz file in one stroke, so that there is never a part of one."""
  with write_atomically(path) as file:
    np.savez(file, embeddings=embeddings, files=np.array(names, np.str_))


if __name__ == '__main__':
  run_command(main)
