"""Speech Commands V2 (https://arxiv.org/abs/1804.03209): WORD/*.wav, validation_list.txt and testing_list.txt."""

from collections.abc import Sequence

from selfie_jax.evaluation.tasks.tree import Listing, Row, Tree

_LISTS = {'valid': 'validation_list.txt', 'test': 'testing_list.txt'}


def listing(tree: Tree, lists: Sequence[str] = ()) -> Listing:
  """Lists the clips of all words; `_background_noise_` is no word. A group is a speaker.

  Raises:
    UserError: the layout is another one.
  """
  prefix = tree.locate(_LISTS['test'], 'the unpacked speech_commands_v0.02')
  tree.locate(prefix + _LISTS['valid'], 'the unpacked speech_commands_v0.02')
  splits = {
    prefix + line.strip(): split
    for split, name in _LISTS.items()
    for line in tree.read(prefix + name).decode().splitlines()
    if line.strip()
  }
  words = (file for file in tree.below(prefix, ['.wav']) if _is_word(file.removeprefix(prefix)))
  rows = []
  for file in sorted({*words, *splits}):
    word, _, name = file.removeprefix(prefix).partition('/')
    rows.append(Row(file, (word,), splits.get(file, 'train'), name.split('_nohash_')[0]))
  return Listing(tuple(rows), folds=False)


def _is_word(name: str) -> bool:
  return name.count('/') == 1 and not name.startswith('_')
