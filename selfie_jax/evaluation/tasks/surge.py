"""The pitch dataset of the Surge synthesizer (https://zenodo.org/record/4677097): PRESET/NOTE.ogg."""

import re
from collections.abc import Sequence

from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks.lists import one_list, read_columns
from selfie_jax.evaluation.tasks.splitting import split_by_hash
from selfie_jax.evaluation.tasks.tree import Listing, Row, Tree

_NOTES = range(21, 109)  # A piano's.
_SHARES = (1_692, 195, 197)  # Of the 2,084 presets.
_NUMBER = re.compile(r'(?:.*\D)?(\d+)\.ogg', re.IGNORECASE | re.DOTALL)


def parse(name: str) -> int | None:
  """Returns the MIDI note that a file's name ends in (60.ogg, `Brass 2-60.ogg`); None if it is none of a piano's."""
  match = _NUMBER.fullmatch(name)
  return int(match[1]) if match and int(match[1]) in _NOTES else None


def listing(tree: Tree, lists: Sequence[str] = ()) -> Listing:
  """Lists the notes; the class is the MIDI note, a group is a preset (a folder).

  Without a list (columns tone, split) the presets are dealt out by our own rule.

  Raises:
    UserError: the layout is another one, or the list lacks a preset.
  """
  files = [file for file in tree.below('', ['.ogg']) if '/' in file]
  notes = {file: note for file in files if (note := parse(file.split('/')[-1]))}
  if not notes:
    raise UserError(
      f'{tree.root} has no PRESET/NOTE.ogg whose name ends in a MIDI note, 21 to 108: is this the Surge pitch dataset?'
    )
  presets = {file: file.split('/')[-2] for file in notes}
  path = one_list(lists, "EVAR's dataset_surge_tone_splits.csv")
  if path:
    splits = {tone: row['split'] for tone, row in read_columns(path, ('tone', 'preset')).items()}
    lacking = sorted(set(presets.values()) - splits.keys())
    if lacking:
      raise UserError(f'{path} lacks {len(lacking)} of the presets, the first is "{lacking[0]}"')
    notices = []
  else:
    splits = split_by_hash(presets.values(), _SHARES)
    notices = ['the splits are our own draw of presets: results compare with published ones only roughly']
  if len(files) > len(notes):
    other = next(file for file in files if file not in notes)
    notices.append(f'{len(files) - len(notes)} files have no MIDI note in their names and are left out: {other}, ...')
  rows = (Row(file, (str(note),), splits[presets[file]], presets[file]) for file, note in notes.items())
  return Listing(tuple(rows), folds=False, notices=tuple(notices))
