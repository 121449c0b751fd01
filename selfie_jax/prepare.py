"""Prepares datasets: audio files become TFRecord shards, once.

python -m selfie_jax.prepare folder --input DIR_OR_CSV --output DIR
python -m selfie_jax.prepare verify DIR

The same input and settings give the same shards and indexes, byte for byte. The manifest is the same for the same files
under the same path: it also has the command and a fingerprint of the files' times of change.
"""

import argparse
import dataclasses
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

from selfie_jax import config, validation
from selfie_jax.config import Config, LogMel
from selfie_jax.data import dataset, folder
from selfie_jax.data.dataset import Manifest
from selfie_jax.data.workers import cpu_count
from selfie_jax.errors import ArgumentParser, UserError, run_command
from selfie_jax.terminal import progress


def main(arguments: Sequence[str]) -> int | None:
  """Runs the job that the first argument names."""
  options = _parser().parse_args(arguments)
  return options.job(options)


def _parser() -> ArgumentParser:
  parser = ArgumentParser(prog='python -m selfie_jax.prepare', description='Prepares datasets for pre-training.')
  jobs = parser.add_subparsers(required=True, metavar='JOB')
  workers = argparse.ArgumentParser(add_help=False)
  workers.add_argument('--workers', type=_positive_int, default=cpu_count(), help='processes (default: all cores)')

  job = jobs.add_parser('folder', parents=[workers], help='a folder of audio files, or a CSV, becomes a dataset')
  job.add_argument('--input', required=True, type=Path, help='a folder, or a CSV with a column file_name')
  job.add_argument('--output', required=True, type=Path, help="the dataset's folder")
  job.add_argument('--config', help='take the log-mel settings from this config file')
  job.add_argument('--max_bad_fraction', type=_fraction, default=0.05, help='more bad files are an error')
  job.add_argument('--min_seconds', type=float, default=0.1, help='shorter clips are left out')
  job.add_argument('--silence_dbfs', type=float, default=-70.0, help='clips of a lower RMS are left out')
  job.add_argument('--clips_per_shard', type=_positive_int, default=512, help='files that make a shard')
  job.set_defaults(job=_folder)

  job = jobs.add_parser('verify', parents=[workers], help='check every byte of a dataset')
  job.add_argument('output', type=Path, metavar='DIR', help="the dataset's folder")
  job.set_defaults(job=_verify)
  return parser


def _folder(options: argparse.Namespace) -> None:
  manifest = folder.prepare_folder(
    options.input,
    options.output,
    log_mel=_log_mel(options.config),
    clips_per_shard=options.clips_per_shard,
    min_seconds=options.min_seconds,
    silence_dbfs=options.silence_dbfs,
    max_bad_fraction=options.max_bad_fraction,
    num_workers=options.workers,
    command=_command(options),
  )
  print(_summary(options.output, manifest))


def _log_mel(config_file: str | None) -> LogMel:
  """Returns the log-mel settings of the config file, or the default ones without one."""
  log_mel = config.load(config_file, (), Config).log_mel if config_file else LogMel()
  validation.validate_log_mel(log_mel)
  return log_mel


def _command(options: argparse.Namespace) -> str:
  """The command for the manifest: all that decides its bytes, so neither --output nor --workers."""
  names = ('input', 'config', 'max_bad_fraction', 'min_seconds', 'silence_dbfs', 'clips_per_shard')
  values = {name: getattr(options, name) for name in names}
  given = [part for name, value in values.items() if value is not None for part in (f'--{name}', str(value))]
  return shlex.join(['python', '-m', 'selfie_jax.prepare', 'folder', *given])


def _summary(output: Path, manifest: Manifest) -> str:
  counts = dataclasses.asdict(manifest.audit)
  left_out = [f'{counts[kind]} {kind}' for kind in counts if kind not in ('files', 'ok') and counts[kind]]
  return (
    f'{output}: {manifest.num_clips} clips, {manifest.hours:.2f} h at {manifest.sample_rate} Hz, '
    f'{len(manifest.shards)} shards; log-mel mean {manifest.mean:.4f}, std {manifest.std:.4f}; '
    f'left out: {", ".join(left_out) or "none"} ({output / folder.AUDIT})'
  )


def _verify(options: argparse.Namespace) -> None:
  path = options.output
  manifest = dataset.load_manifest(path)
  problems = [
    f'the shard {path / name} is not in {dataset.MANIFEST}' for name in dataset.unknown_shards(path, manifest.shards)
  ]
  found = dataset.verify(path, manifest, options.workers)
  for of_shard in progress(found, f'verifying {manifest.num_clips} clips, by shard', len(manifest.shards)):
    problems += of_shard
  for problem in problems:
    print(problem)
  if problems:
    raise UserError(f'{path} is damaged, problems found: {len(problems)}, the first: {problems[0]}')
  print(f'{path}: {manifest.num_clips} clips in {len(manifest.shards)} shards, every checksum and count is right')


def _positive_int(text: str) -> int:
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f'{value} is less than 1')
  return value


def _fraction(text: str) -> float:
  value = float(text)
  if not 0 <= value <= 1:
    raise argparse.ArgumentTypeError(f'{value:g} is not between 0 and 1')
  return value


if __name__ == '__main__':
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # A polite kill ends like Ctrl-C: in order, without noise.
  run_command(main)
