"""Which converter lists the clips of an input."""

from collections.abc import Sequence

from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks import cremad, csv_table, esc50, gtzan, nsynth, spcv2, surge, us8k, vc1, voxforge
from selfie_jax.evaluation.tasks.nine import NINE, Definition
from selfie_jax.evaluation.tasks.tree import Listing, Tree, list_tree

CSV = 'csv'
_LISTINGS = {
  **{'esc50': esc50.listing, 'us8k': us8k.listing, 'spcv2': spcv2.listing, 'vc1': vc1.listing},
  **{'voxforge': voxforge.listing, 'cremad': cremad.listing, 'gtzan': gtzan.listing, 'nsynth': nsynth.listing},
  **{'surge': surge.listing},
}
_TAKE_LISTS = ('vc1', 'voxforge', 'cremad', 'gtzan', 'surge')
_TFDS_INFO = 'dataset_info.json'


def list_input(
  task: str, root: str, lists: Sequence[str] = (), folds: int | None = None
) -> tuple[Tree, Listing, Definition | None]:
  """Lists the clips of a task.

  Args:
    task: one of the nine, or 'csv'.
    root: the unpacked download; or a dataset prepared by TFDS; for 'csv' see `csv_table.listing`.
    lists: files that tell the splits.
    folds: for 'csv'.

  Returns:
    The files, the clips, and the task's definition, None for 'csv'.

  Raises:
    UserError: the input is not what the task needs.
  """
  if lists and task not in _TAKE_LISTS:
    raise UserError(f'--lists has {len(lists)} files, and task "{task}" takes none')
  if task == CSV:
    return *csv_table.listing(root, folds), None
  if folds is not None:
    raise UserError(f'--folds is for task "{CSV}"; "{task}" has its own splits')
  definition = NINE[task]
  tree = list_tree(root)
  infos = [file for file in tree.files if file.split('/')[-1] == _TFDS_INFO and file.count('/') <= 2]
  if not infos:
    return tree, _LISTINGS[task](tree, lists), definition
  if len(infos) > 1:
    raise UserError(f'{tree.root} holds {len(infos)} datasets of TFDS, such as {infos[0]}: give the folder of one')
  from selfie_jax.evaluation.tasks import tfds_folder  # Not at the top: it imports TensorFlow Datasets.

  folder = f'{tree.root}/{infos[0]}'.rpartition('/')[0]
  return *tfds_folder.listing(definition, folder, lists), definition
