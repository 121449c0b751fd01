"""GTZAN, fault-filtered: GENRE/GENRE.NNNNN.wav, and the lists of Kereliuk, Sturm and Larsen (arXiv 1507.04761)."""

import re
from collections.abc import Sequence

from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks.lists import read_named
from selfie_jax.evaluation.tasks.tree import Listing, Row, Tree

_NAME = re.compile(r'(?:.*/)?(?P<stem>(?P<genre>[a-z]+)\.\d{5})(?:\.(?:wav|au))?')
_NEEDED = (
  'give --lists train_filtered.txt valid_filtered.txt test_filtered.txt, from '
  'https://github.com/jongpillee/music_dataset_split/tree/master/GTZAN_split'
)


def parse(name: str) -> tuple[str, str] | None:
  """Returns ('blues.00029', 'blues') of blues/blues.00029.wav or blues.00029, None of another name."""
  match = _NAME.fullmatch(name)
  return (match['stem'], match['genre']) if match else None


def read_lists(lists: Sequence[str]) -> dict[str, str]:
  """Returns the split of each track that the lists keep, by names like blues.00029.

  Raises:
    UserError: not all three splits are given, or a line is no track.
  """
  if not lists:
    raise UserError(f"GTZAN's fault-filtered split is in no download: {_NEEDED}")
  splits = {}
  for name, split in read_named(lists).items():
    parsed = parse(name)
    if not parsed:
      raise UserError(f'--lists has the line "{name[:80]}", which is no track like blues/blues.00029.wav')
    splits[parsed[0]] = split
  lacking = {'train', 'valid', 'test'} - set(splits.values())
  if lacking:
    raise UserError(f'--lists has no tracks of {", ".join(sorted(lacking))}: {_NEEDED}')
  return splits


def listing(tree: Tree, lists: Sequence[str] = ()) -> Listing:
  """Lists the tracks that the lists keep.

  Raises:
    UserError: the layout is another one, or the lists are not all there.
  """
  places = {parsed[0]: file for file in tree.below('', ['.wav', '.au']) if (parsed := parse(file))}
  if not places:
    raise UserError(f'no file in {tree.root} or below has a name like blues/blues.00000.wav: is this GTZAN (genres)?')
  splits = read_lists(lists)
  rows = (
    Row(places.get(stem, f'{stem.split(".")[0]}/{stem}.wav'), (stem.split('.')[0],), split)
    for stem, split in splits.items()
  )
  left_out = len(places.keys() - splits.keys())
  return Listing(tuple(rows), folds=False, notices=(f'{left_out} tracks are in no list, and left out (the filter)',))
