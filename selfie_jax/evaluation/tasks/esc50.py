"""ESC-50 (https://github.com/karolpiczak/ESC-50): audio/*.wav, and meta/esc50.csv that tells of all of them."""

from collections.abc import Sequence

from selfie_jax.data.table import read_table, require
from selfie_jax.evaluation.tasks.tree import Listing, Row, Tree
from selfie_jax.files import as_path

_META = 'meta/esc50.csv'


def listing(tree: Tree, lists: Sequence[str] = ()) -> Listing:
  """Lists the clips; a group is a recording that several were cut from.

  Raises:
    UserError: the layout is another one.
  """
  prefix = tree.locate(_META, 'ESC-50-master')
  path = as_path(tree.root) / prefix / _META
  table = read_table(path)
  require(table, ('filename', 'fold', 'category'), path)
  rows = (
    Row(f'{prefix}audio/{row["filename"]}', (row['category'],), row['fold'], row.get('src_file', '')) for row in table
  )
  return Listing(tuple(rows), folds=True)
