"""NSynth (https://magenta.tensorflow.org/datasets/nsynth): nsynth-{train,valid,test}/{audio/*.wav,examples.json}."""

import json
from collections.abc import Sequence

from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks.tree import Listing, Row, Tree

_SPLITS = ('train', 'valid', 'test')


def listing(tree: Tree, lists: Sequence[str] = ()) -> Listing:
  """Lists the notes of the examples.json; the class is the instrument's family, a group is an instrument.

  Raises:
    UserError: the layout is another one.
  """
  rows = []
  for split in _SPLITS:
    name = f'nsynth-{split}/examples.json'
    prefix = tree.locate(name, 'the folder that nsynth-train, nsynth-valid and nsynth-test were unpacked in')
    try:
      examples = json.loads(tree.read(prefix + name))
      rows += [
        Row(
          f'{prefix}nsynth-{split}/audio/{note}.wav',
          (facts['instrument_family_str'],),
          split,
          facts.get('instrument_str', ''),
        )
        for note, facts in examples.items()
      ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise UserError(f'{tree.root}/{prefix}{name} is not the examples.json of NSynth: {error!r}') from error
  return Listing(tuple(rows), folds=False)
