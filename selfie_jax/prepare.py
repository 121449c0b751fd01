"""Prepares datasets: audio files become TFRecord shards, once. And labelled folders, for evaluation.

python -m selfie_jax.prepare folder   --input DIR_OR_CSV --output DIR
python -m selfie_jax.prepare audioset --segments CSV [CSV...] --labels CSV --audio DIR_OR_TAR [...] --output DIR
python -m selfie_jax.prepare tfds     --name NAME --data_dir DIR --output DIR
python -m selfie_jax.prepare task     --task NAME --input DIR --output DIR [--lists FILE...]
python -m selfie_jax.prepare verify   DIR

`task` takes the download of one of the nine tasks, or, as `csv`, any labelled audio, and writes what `evaluate` reads:
see `evaluation/tasks/convert.py`.

All but --segments, --labels and CSVs may also be in an object store (gs://, s3://). The work is done by --workers
processes of this machine or, with --runner, by Apache Beam, whose options come last, after a `--`:

python -m selfie_jax.prepare audioset ... --runner DataflowRunner -- --project=P --region=R --temp_location=gs://...

The same input and settings give the same shards and indexes, byte for byte. The manifest is the same for the same files
under the same path: it also has the command and a fingerprint of the files' times of change.
"""

import argparse
import dataclasses
import functools
import math
import os
import shlex
import signal
from collections.abc import Sequence

from selfie_jax import config, validation
from selfie_jax.config import Config, LogMel
from selfie_jax.data import audioset, build, dataset, inputs, shard, verify, workers
from selfie_jax.data.clip import Listing
from selfie_jax.data.dataset import Manifest, Source
from selfie_jax.errors import ArgumentParser, UserError, run_command
from selfie_jax.evaluation.tasks import convert, converters
from selfie_jax.evaluation.tasks.nine import NINE
from selfie_jax.files import check_reachable, is_remote, list_files
from selfie_jax.terminal import progress

# What decides no byte of a dataset, and is not in the command that its manifest has.
_NOT_IN_MANIFEST = ('job_name', 'job', 'list_clips', 'output', 'workers', 'runner', 'beam_options')


def main(arguments: Sequence[str]) -> int | None:
  """Runs the job that the first argument names."""
  arguments = list(arguments)
  end = arguments.index('--') if '--' in arguments else len(arguments)
  options = _parser().parse_args(arguments[:end])
  options.beam_options = arguments[end + 1 :]
  if options.beam_options and not getattr(options, 'runner', None):
    raise UserError(f'"{options.beam_options[0]}" is an option for Beam, which works only with --runner')
  return options.job(options)


def _parser() -> ArgumentParser:
  parser = ArgumentParser(prog='python -m selfie_jax.prepare', description='Prepares datasets for pre-training.')
  jobs = parser.add_subparsers(required=True, metavar='JOB', dest='job_name')
  workers_option = argparse.ArgumentParser(add_help=False)
  workers_option.add_argument(
    '--workers', type=_positive_int, default=workers.cpu_count(), help='processes (default: all cores)'
  )

  job = _add_build_job(jobs, 'folder', workers_option, 512, 'a folder of audio files, or a CSV, becomes a dataset')
  job.add_argument('--input', required=True, help='a folder, a tar, or a CSV (columns file_name, label, split)')
  job.set_defaults(list_clips=_list_folder)

  # 10 s are 320 kB: shards of some 200 MB, a size that object stores are fast with.
  # And of what people have of it, up to a fifth is missing or broken.
  job = _add_build_job(
    jobs, 'audioset', workers_option, 768, "AudioSet's segments, and the audio you have of them", 0.25
  )
  job.add_argument(
    '--segments', required=True, nargs='+', help='balanced_train_segments.csv, ...: each becomes a split'
  )
  job.add_argument('--labels', required=True, help='class_labels_indices.csv')
  job.add_argument('--audio', required=True, nargs='+', help='folders or tars of the audio')
  job.add_argument('--ontology', help='ontology.json, to check the labels against')
  job.set_defaults(list_clips=_list_audioset)

  job = _add_build_job(jobs, 'tfds', workers_option, 512, 'a dataset that TensorFlow Datasets has prepared')
  job.add_argument('--name', required=True, help='such as nsynth, nsynth/full or nsynth/full:2.3.3')
  job.add_argument('--data_dir', required=True, help="the folder of TensorFlow Datasets' datasets")
  job.add_argument('--sample_rate', type=_positive_int, help='of its audio, where its features do not say it')
  job.set_defaults(list_clips=_list_tfds)

  job = jobs.add_parser(
    'task',
    parents=[workers_option],
    help='a labelled task becomes a folder that evaluate reads',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog=_layouts(),
  )
  job.add_argument('--task', required=True, choices=(*NINE, converters.CSV), help='one of the nine, or csv: your own')
  job.add_argument(
    '--input', required=True, help='the unpacked download, or what TFDS made of it; csv: a folder or a CSV'
  )
  job.add_argument('--output', required=True, type=_path, help="the task's folder; evaluate finds it by its name")
  job.add_argument('--lists', nargs='+', help='files that tell the splits, where the download has none')
  job.add_argument('--folds', type=_folds, help='csv: make so many folds, where there are no splits')
  job.add_argument('--unit_seconds', type=_seconds, help='csv: clips are cut there when they are evaluated')
  job.add_argument(
    '--max_bad_fraction',
    type=_fraction,
    default=0.01,
    help='more bad files, of those there, are an error (%(default)s)',
  )
  job.set_defaults(job=_convert_task)

  job = jobs.add_parser('verify', parents=[workers_option], help='check every byte of a dataset')
  job.add_argument('output', metavar='DIR', help="the dataset's folder")
  job.set_defaults(job=_verify)
  return parser


def _add_build_job(
  jobs: argparse._SubParsersAction,
  name: str,
  workers_option: ArgumentParser,
  clips_per_shard: int,
  description: str,
  max_bad_fraction: float = 0.05,
) -> argparse.ArgumentParser:
  """Adds a job that writes a dataset."""
  job = jobs.add_parser(name, parents=[workers_option], help=description)
  job.set_defaults(job=_build)
  job.add_argument('--output', required=True, type=_path, help="the dataset's folder")
  job.add_argument('--config', help='take the log-mel settings from this config file')
  job.add_argument(
    '--max_bad_fraction',
    type=_fraction,
    default=max_bad_fraction,
    help='more bad files, of those found, are an error (%(default)s)',
  )
  job.add_argument(
    '--max_missing_fraction', type=_fraction, default=0.3, help='more missing clips are an error (%(default)s)'
  )
  job.add_argument('--min_seconds', type=_seconds, default=0.1, help='shorter clips are left out (%(default)s)')
  job.add_argument(
    '--silence_dbfs', type=_finite, default=-70.0, help='clips of a lower RMS are left out (%(default)s)'
  )
  job.add_argument('--audio_format', choices=shard.AUDIO_FORMATS, default='int16', help='flac: about half the bytes')
  job.add_argument(
    '--clips_per_shard', type=_positive_int, default=clips_per_shard, help='files that make a shard (%(default)s)'
  )
  job.add_argument('--runner', help='work with this runner of Apache Beam, such as DirectRunner or DataflowRunner')
  return job


def _list_folder(options: argparse.Namespace) -> Listing:
  return inputs.list_folder(options.input)


def _list_audioset(options: argparse.Namespace) -> Listing:
  return audioset.list_clips(options.segments, options.labels, options.audio, options.ontology)


def _list_tfds(options: argparse.Namespace) -> Listing:
  from selfie_jax.data import tfds_source  # Imports TensorFlow Datasets.

  return tfds_source.list_clips(options.name, _path(options.data_dir), options.sample_rate)


def _build(options: argparse.Namespace) -> None:
  """Makes a dataset and says what is in it."""
  log_mel, run = _log_mel(options.config), _runner(options)  # First: a listing may take minutes.
  given = vars(options)
  for path in (options.output, given.get('input'), given.get('data_dir'), *given.get('audio', ())):
    check_reachable(path or '')
  listing = options.list_clips(options)
  manifest = build.build(
    listing,
    options.output,
    Source(
      kind=listing.kind,
      fingerprint=listing.fingerprint,
      clips_per_shard=options.clips_per_shard,
      min_seconds=options.min_seconds,
      silence_dbfs=options.silence_dbfs,
      audio_format=options.audio_format,
    ),
    log_mel=log_mel,
    max_bad_fraction=options.max_bad_fraction,
    max_missing_fraction=options.max_missing_fraction,
    run=run,
    num_threads=options.workers,
    command=_command(options),
  )
  print(_summary(options.output, manifest))


def _log_mel(config_file: str | None) -> LogMel:
  """Returns the log-mel settings of the config file, or the default ones without one."""
  log_mel = config.load(config_file, (), Config).log_mel if config_file else LogMel()
  validation.validate_log_mel(log_mel)
  return log_mel


def _runner(options: argparse.Namespace) -> build.Runner:
  if options.runner is None:
    return functools.partial(workers.run, workers=options.workers)
  from selfie_jax.data import beam  # Slow to import, and needed only here.

  return beam.make_runner(options.runner, options.beam_options, options.workers)


def _command(options: argparse.Namespace) -> str:
  """The command for the manifest: all that decides its bytes, so neither --output nor who did the work."""
  given = []
  for name, value in vars(options).items():
    if name not in _NOT_IN_MANIFEST and value is not None:
      given += [f'--{name}', *map(str, value if isinstance(value, list) else [value])]
  return shlex.join(['python', '-m', 'selfie_jax.prepare', options.job_name, *given])


def _summary(output: str, manifest: Manifest) -> str:
  counts = dataclasses.asdict(manifest.audit)
  kinds = [f'{counts[kind]} {kind}' for kind in counts if kind not in ('clips', 'ok') and counts[kind]]
  return (
    f'{output}: {manifest.num_clips} clips, {manifest.hours:.2f} h at {manifest.sample_rate} Hz, '
    f'shards: {len(manifest.shards)}; log-mel mean {manifest.mean:.4f}, std {manifest.std:.4f}; '
    f'audit: {", ".join(kinds) or "no complaints"} ({os.path.join(output, build.AUDIT)})'
  )


def _layouts() -> str:
  """Returns what --input and --lists are of each of the nine tasks, for --help."""
  lines = ['--input, and --lists where there are some:']
  for name, definition in NINE.items():
    lines.append(f'  {name:9} {definition.layout}')
    if definition.lists:
      lines.append(f'  {"":9} --lists: {definition.lists}')
  return '\n'.join(lines)


def _convert_task(options: argparse.Namespace) -> None:
  if options.unit_seconds and options.task != converters.CSV:
    raise UserError(
      f'--unit_seconds is for task "{converters.CSV}"; that of "{options.task}" is part of its definition'
    )
  tree, listing, definition = converters.list_input(options.task, options.input, options.lists or (), options.folds)
  description = convert.convert(
    tree,
    listing,
    definition,
    options.output,
    command=_command(options),
    unit_seconds=options.unit_seconds or 0,
    max_bad_fraction=options.max_bad_fraction,
    num_workers=options.workers,
  )
  parts = ', '.join(f'{part} {count:,}' for part, count in description['clips']['found'].items())
  kind = 'folds' if listing.folds else 'splits'
  print(f'{options.output}: classes: {description["classes"]["found"]:,}, clips of the {kind}: {parts}')


def _verify(options: argparse.Namespace) -> None:
  path = options.output
  check_reachable(path)
  manifest = dataset.load_manifest(path)
  unknown = dataset.unknown_shards(list_files(path), manifest.shards)
  problems = [f'the shard {os.path.join(path, name)} is not in {dataset.MANIFEST}' for name in unknown]
  found = verify.verify(path, manifest, options.workers)
  for of_shard in progress(found, f'verifying {manifest.num_clips} clips, by shard', len(manifest.shards)):
    problems += of_shard
  for problem in problems:
    print(problem)
  if problems:
    raise UserError(f'{path} is damaged, problems found: {len(problems)}, the first: {problems[0]}')
  print(f'{path}: {manifest.num_clips} clips in {len(manifest.shards)} shards, every checksum and count is right')


def _path(text: str) -> str:
  """A path that means the same to a worker that starts elsewhere."""
  return text if is_remote(text) else os.path.abspath(os.path.expanduser(text))


def _positive_int(text: str) -> int:
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f'{value} is less than 1')
  return value


def _folds(text: str) -> int:
  value = int(text)
  if value < 2:
    raise argparse.ArgumentTypeError(f'{value} is less than 2')
  return value


def _finite(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):  # NaN would be unlike itself: an interrupted job could not be continued.
    raise argparse.ArgumentTypeError(f'{text} is not a finite number')
  return value


def _seconds(text: str) -> float:
  value = _finite(text)
  if value < 0:
    raise argparse.ArgumentTypeError(f'{value:g} is less than 0')
  return value


def _fraction(text: str) -> float:
  value = float(text)
  if not 0 <= value <= 1:
    raise argparse.ArgumentTypeError(f'{value:g} is not between 0 and 1')
  return value


if __name__ == '__main__':
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # A polite kill ends like Ctrl-C: in order, without noise.
  run_command(main)
