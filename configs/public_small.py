"""A small AudioNTT on 8.7 hours of public sounds: speech, instruments, drums, everyday events.

Command:   python -m selfie_jax.train --config configs/public_small.py --workdir DIR --config.data.path=RECORDS
Hardware:  1 CPU core.

What differs from the published recipes, and why:
  concat_conv, concat_blocks the features of all three blocks of convolutions are read out beside the dense layers'.
  dense_only                 the projector sees the latter alone, so no invariance is asked of the convolutions.
  resize_frequency 0.8-1.25  the published 0.6-1.5 makes two views of a note differ in pitch above all.
  invariance 5               with 25 the embeddings stay in a few directions.
  learning_rate 1e-3         with 3e-4 the embeddings' standard deviation is far from 1 after 100,000 pairs.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      'steps': 800,
      'batch_size': 128,
      'augment': {'resize_frequency': (0.8, 1.25)},
      'encoder': {'conv_channels': 64, 'width': 512, 'concat_conv': True, 'concat_blocks': 3},
      'projector': {'dense_only': True, 'hidden_width': 1024, 'output_width': 256},
      'objective': {'invariance': 5.0},
      'optimizer': {'learning_rate': 1e-3, 'warmup_steps': 40},
      'checkpoint': {'every_steps': 200},
      'log': {'every_steps': 20, 'health_every_steps': 100},
    }
  )
