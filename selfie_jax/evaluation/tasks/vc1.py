"""VoxCeleb1 (https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html), identification: wav/idXXXXX/VIDEO/NNNNN.wav."""

from collections.abc import Sequence

from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks.lists import one_list, parse_numbered, read_text
from selfie_jax.evaluation.tasks.tree import Listing, Row, Tree

_LIST = 'iden_split.txt'
_URL = 'https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt'


def listing(tree: Tree, lists: Sequence[str] = ()) -> Listing:
  """Lists the clips of iden_split.txt; the class is the speaker, a group is a video.

  The dev and test zips both unpack to a folder `wav`; whether they are in one or in two does not matter.

  Raises:
    UserError: there is no iden_split.txt, a line of it is something else, or none of its clips is there.
  """
  path = one_list(lists, _LIST)
  if path:
    text, name = read_text(path), path
  elif any(file == _LIST or file.endswith(f'/{_LIST}') for file in tree.files):
    name = tree.locate(_LIST, 'VoxCeleb1') + _LIST
    text = tree.read(name).decode()
  else:
    raise UserError(f'no {_LIST} in {tree.root} or below: get it from {_URL} and give it with --lists')
  splits = parse_numbered(text, name)
  places = {'/'.join(file.split('/')[-3:]): file for file in tree.below('', ['.wav'])}
  if not places.keys() & splits.keys():
    raise UserError(
      f'{tree.root} has none of the {len(splits)} clips of {name}, such as {next(iter(splits), "")}: is this where the '
      'zips of VoxCeleb1 were unpacked (wav/idXXXXX/VIDEO/NNNNN.wav)?'
    )
  rows = (
    Row(places.get(file, f'wav/{file}'), (file.split('/')[0],), split, '/'.join(file.split('/')[:2]))
    for file, split in splits.items()
  )
  return Listing(tuple(rows), folds=False)
