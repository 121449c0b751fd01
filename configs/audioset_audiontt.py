"""AudioNTT2022 on AudioSet: the convolutional encoder of BYOL-A v2 (6.3 million parameters, 3,072 features).

Command:   python -m selfie_jax.train --config configs/audioset_audiontt.py --workdir DIR --config.data.path=RECORDS
           (RECORDS: what `python -m selfie_jax.prepare audioset` has written: a folder, gs:// or s3://.)
Hardware:  TPU v5e (or GPUs), from 8 chips with 512 clips on each to 256 chips with 16 on each: mixup finds its partners
           among 16 clips of one chip. What it needs of a chip's memory is known without the chips:
           python -m selfie_jax.compile --config configs/audioset_audiontt.py --topology v5e:16x16
Not run:   it has been compiled for TPUs, and trained on none. Its run time and accuracy are not known.

Encoder, crop and augmentation are the published ones of BYOL-A v2 (arXiv 2204.07402). Batch, optimizer and projector
are our choices, untested: a batch for many chips (BYOL-A: 256), about 100 passes over 2 million clips, and a projector
of one hidden layer to 1,024 dimensions (where the ablations of Audio Barlow Twins level off).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      'steps': 50_000,
      'batch_size': 4_096,
      'compute_dtype': 'bfloat16',
      'data': {'splits': ('balanced_train', 'unbalanced_train'), 'crop_seconds': 0.95, 'read_threads': 16},
      'encoder': {'name': 'audiontt', 'conv_blocks': 2, 'conv_channels': 64, 'width': 2_048, 'concat_conv': True},
      'projector': {'hidden_width': 4_096, 'output_width': 1_024},
      'optimizer': {'name': 'adamw', 'learning_rate': 1e-3, 'warmup_steps': 2_500, 'weight_decay': 1e-4},
      'checkpoint': {'every_steps': 5_000},
    }
  )
