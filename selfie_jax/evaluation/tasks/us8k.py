"""UrbanSound8K (https://urbansounddataset.weebly.com): audio/foldN/*.wav, and metadata/UrbanSound8K.csv."""

from collections.abc import Sequence

from selfie_jax.data.table import read_table, require
from selfie_jax.evaluation.tasks.tree import Listing, Row, Tree
from selfie_jax.files import as_path

_META = 'metadata/UrbanSound8K.csv'


def listing(tree: Tree, lists: Sequence[str] = ()) -> Listing:
  """Lists the clips; a group is a recording (of freesound.org) that several were cut from.

  Raises:
    UserError: the layout is another one.
  """
  prefix = tree.locate(_META, 'UrbanSound8K')
  path = as_path(tree.root) / prefix / _META
  table = read_table(path)
  require(table, ('slice_file_name', 'fold', 'class'), path)
  rows = (
    Row(f'{prefix}audio/fold{row["fold"]}/{row["slice_file_name"]}', (row['class'],), row['fold'], row.get('fsID', ''))
    for row in table
  )
  return Listing(tuple(rows), folds=True)
