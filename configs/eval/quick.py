"""Every labelled folder of a folder, with one probe seed instead of three: a look at a run while it trains.

Folders of splits that cannot be tested on are left out. Embeddings are those of any other config, and are not computed
again for one that follows.

Command:  python -m selfie_jax.evaluate --config configs/eval/quick.py --workdir DIR --config.tasks_dir=DIR_OF_FOLDERS
"""

import os

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({'tasks_dir': os.environ.get('TASKS', 'tasks'), 'seeds': (42,)})
