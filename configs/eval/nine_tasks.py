"""The nine tasks of the published tables: linear probes under protocol `corrected`.

ESC-50, UrbanSound8K, Speech Commands V2, VoxCeleb1, VoxForge, CREMA-D, GTZAN, NSynth, Surge (see `tasks/nine.py`).
Make their folders with `python -m selfie_jax.prepare task --task NAME --input DOWNLOAD --output tasks/NAME`, or set
TASKS to where they are. Some of them only: --config.only="('esc50','gtzan')". To compare with the published figures:
--config.protocol=evar.

Command:   python -m selfie_jax.evaluate --config configs/eval/nine_tasks.py --workdir DIR [--watch]
Room:      8 bytes x clips x the encoder's features for embeddings in DIR/eval: 15 GB with 2,048 features; the task with
           most clips (NSynth, 305,979) takes as much memory: 5 GB. Computed once for each checkpoint.
Accuracy:  not measured by us: we could not download the nine. The published peers are on the report's page.
"""

import os

import ml_collections

from selfie_jax.evaluation.tasks.nine import NINE


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {'tasks_dir': os.environ.get('TASKS', 'tasks'), 'tasks': [{'name': name} for name in NINE]}
  )
