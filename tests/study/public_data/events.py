"""The task of sound events: what happens, in the effects of four games."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.study.public_data.folders import Clip, Row, clean
from tests.study.public_data.packages import Unpacked
from tests.study.public_data.sounds import decode, find_recordings
from tests.study.public_data.splits import split_labels

_LOOSE = ('wesnoth-1.16-data', 'minetest-data')
_ARCHIVED = ('openarena-data', 'ufoai-sound')
PACKAGES = (*_LOOSE, *_ARCHIVED)

_BEINGS = 'human|dwarf|elf|orc|goblin|ogre|troll|mermen|mermaid|zombie|ghoul|lich|witches|wose'
_LABELS = (  # The first pattern that is in a file's name decides; in the archives, its folders are part of the name.
  ('footstep', r'footstep|footsteps/'),
  (
    'voice',
    rf'({_BEINGS})[a-z-]*-(die|hit|laugh|small|old|female)|groan|ugg|laugh|'
    r'player/\w+/(death|pain|jump|fall|gasp|drown|taunt)|civilians/|soldiers/',
  ),
  ('creature', r'(bat|wolf|horse|gryphon|tusker|drake|naga|yeti)-|birds|hiss|bite|aliens/'),
  (
    'weapon',
    r'weapons/|^(sword|axe|dagger|knife|mace|club|staff|flail|spear|hatchet|bow|sling|dart|throw|gunshot|thunderstick|'
    r'crossbow)',
  ),
  ('fire_magic', r'magic|flame|fire|lightning|torch|explosion|dragonstick|fuse|faerie'),
  ('dig_door', r'default_(dig|dug|place|break|chest)|_(dig|dug)\.|doors|door_'),
  ('signal', r'^horn|^bell|^chat|button|^select|checkbox|slider|geoscape/|/ui/|^ui/|/misc/menu|items/'),
)


def event_clips(packages: Unpacked) -> Iterator[Clip]:
  """Yields the effects whose names tell what they are. Their splits come last: see `assign_splits`."""
  for package in PACKAGES:
    for name, source in _effects(packages[package], package in _ARCHIVED):
      label = event_label(name)
      if label:
        columns = {'split': '', 'label': label, 'group': clean(group_of(name)), 'source': package}
        title = clean(f'{package.split("-")[0]}_{name.rsplit(".", 1)[0]}')
        yield Clip(title, decode(source), columns, shortest=0.08, longest=4)


def assign_splits(rows: list[Row]) -> list[Row]:
  """Returns the rows with their splits: variants of an effect stay together."""
  return split_labels(rows, 'group', salt='s1')


def event_label(name: str) -> str | None:
  """Returns the type of event that a file's name tells, None where it tells none."""
  return next((label for label, pattern in _LABELS if re.search(pattern, name.lower())), None)


def group_of(name: str) -> str:
  """Returns a file's name without its ending and what tells its variants apart."""
  return re.sub(r'(-miss|[-_. ]?\d+)*\.\w+$', '', name)


def _effects(folder: Path, archived: bool) -> Iterator[tuple[str, Path | bytes]]:
  """Yields the effects of a package by their names, as files or as their bytes."""
  if not archived:
    yield from ((path.name, path) for path in find_recordings(folder))
    return
  for path in find_recordings(folder, ('.pk3',)):  # A zip.
    with zipfile.ZipFile(path) as archive:
      for name in archive.namelist():
        if name.lower().endswith(('.wav', '.ogg')):
          yield name.replace('sound/', '', 1), archive.read(name)
