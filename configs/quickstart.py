"""The quick start's run: an AudioNTT of a laptop's size on the sounds that PyPI packages ship.

Command:   python -m selfie_jax.train --config configs/quickstart.py --workdir quickstart/seed_0
Hardware:  2 CPU cores.

What differs from the published recipes, and why. The evidence is single runs of 300 to 500 steps, whose mean accuracy
is good to about 2 points, so each is a direction and no more:
  conv_channels 32           half of AudioNTT's: a laptop sees twice as many clips in its few minutes.
  concat_conv, dense_only    the convolutions' features are read out beside the dense layers', but the projector sees
                             the latter alone, so no invariance is asked of the convolutions (+3.7 points, seed 1).
  resize_frequency 0.8-1.25  the published 0.6-1.5 makes two views of a note differ in pitch above all: the loss stalls
                             at an effective rank of 11, and pitch suffers. Without any, drums suffer.
  invariance 5               with 25 the embeddings stay in a few directions (rank 10 against 37).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      'steps': 400,
      'batch_size': 64,
      'data': {'path': 'quickstart/data/pretrain_records'},
      'augment': {'resize_frequency': (0.8, 1.25)},
      'encoder': {'conv_channels': 32, 'width': 512, 'concat_conv': True},
      'projector': {'dense_only': True, 'hidden_width': 1024, 'output_width': 256},
      'objective': {'invariance': 5.0},
      'optimizer': {'learning_rate': 3e-4, 'warmup_steps': 20},
      'checkpoint': {'every_steps': 100},
      'log': {'every_steps': 20, 'health_every_steps': 100},
    }
  )
