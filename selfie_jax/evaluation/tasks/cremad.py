"""CREMA-D (https://github.com/CheyneyComputerScience/CREMA-D): AudioWAV/SPEAKER_SENTENCE_EMOTION_LEVEL.wav."""

import re
from collections.abc import Sequence

from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks.lists import one_list, read_columns
from selfie_jax.evaluation.tasks.splitting import split_as_tfds
from selfie_jax.evaluation.tasks.tree import Listing, Row, Tree

_NAME = re.compile(r'(?P<speaker>\d{4})_[A-Z]{3}_(?P<emotion>ANG|DIS|FEA|HAP|NEU|SAD)_[A-Z]{1,2}\.wav')
_SHARES = (63, 9, 19)  # Of the 91 speakers.


def parse(name: str) -> tuple[str, str] | None:
  """Returns speaker and emotion of a file's name, None of one that is none of CREMA-D's."""
  match = _NAME.fullmatch(name)
  return (match['speaker'], match['emotion']) if match else None


def listing(tree: Tree, lists: Sequence[str] = ()) -> Listing:
  """Lists the clips; the class is the emotion, a group is a speaker.

  Without a list (columns file_name, split) the speakers are dealt out as TensorFlow Datasets does.

  Raises:
    UserError: the layout is another one.
  """
  found = {file: parsed for file in tree.below('', ['.wav']) if (parsed := parse(file.split('/')[-1]))}
  if not found:
    raise UserError(f'no file in {tree.root} or below has a name like 1001_DFA_ANG_XX.wav: is this CREMA-D?')
  path = one_list(lists, "EVAR's cremad.csv")
  if path:
    places = {file.split('/')[-1]: file for file in found}
    rows = []
    for name, row in read_columns(path, ('file_name',)).items():
      name = name.split('/')[-1]
      parsed = parse(name)
      if not parsed:
        raise UserError(f'{path} has the file {name}; names are like 1001_DFA_ANG_XX.wav')
      rows.append(Row(places.get(name, f'AudioWAV/{name}'), (parsed[1],), row['split'], parsed[0]))
    return Listing(tuple(rows), folds=False)
  splits = split_as_tfds((speaker for speaker, _ in found.values()), _SHARES)
  rows = [Row(file, (emotion,), splits[speaker], speaker) for file, (speaker, emotion) in found.items()]
  return Listing(
    tuple(rows),
    folds=False,
    notices=("the splits are those of TFDS crema_d, not EVAR's: for those give its cremad.csv with --lists",),
  )
