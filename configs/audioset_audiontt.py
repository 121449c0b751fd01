"""AudioNTT2022 on AudioSet: the convolutional encoder of BYOL-A v2 (6.3 million parameters, 5,120 features).

Command:   python -m selfie_jax.train --config configs/audioset_audiontt.py --workdir DIR --config.data.path=RECORDS
           (RECORDS: what `python -m selfie_jax.prepare audioset` has written: a folder, gs:// or s3://.)
Hardware:  TPU v5e (or GPUs), from 8 chips with 512 clips on each to 256 chips with 16 on each: mixup finds its partners
           among 16 clips of one chip. What it needs of a chip's memory is known without the chips:
           python -m selfie_jax.compile --config configs/audioset_audiontt.py --topology v5e:16x16
Not run:   it has been compiled for TPUs, and trained on none. Its run time and accuracy are not known.

Encoder, crop and augmentation are the published ones of BYOL-A v2 (arXiv 2204.07402). Batch, optimizer and projector
are our choices, untested: a batch for many chips (BYOL-A: 256), about 100 passes over 2 million clips, and a projector
of one hidden layer to 1,024 dimensions (where the ablations of Audio Barlow Twins level off).

Carried over from the study of a small encoder (tests/study/STUDY.md: AudioNTT2020 with 32 channels, 25,600 clips of
0.95 s in batches of 128 by Adam; "tuning / test"; differences of pairs of three seeds), and never run at this scale:
  concat_blocks 2   of seed 1, the last dense layer alone has 61.5 / 52.8 ("valid / test") and pitch 83.8; with the last
                    block's convolutions 65.5 / 56.3, 84.8; two blocks' 69.6 / 59.5, 85.5; all three 69.8 / 59.7, 87.3.
                    An encoder of two blocks, as here, has +0.2 +- 0.2 / -0.4 +- 0.7 beside one of three.
  invariance 5      with the 25 of VICReg, -1.1 +- 0.1 / -2.0 +- 0.7.
  resize_frequency  the published 0.6-1.5 stays: beside 0.8-1.25, +0.2 +- 0.1 / -0.3 +- 0.3; none,
                    -1.7 +- 0.1 / -1.8 +- 0.2.
Not carried over: the learning rate, which belongs to a batch and an optimizer; projector.dense_only, which those runs
had (without it -0.3 +- 0.5 / -1.7 +- 0.4); and their projector of 1,024 to 256 (4,096 to 1,024, as here:
-0.5 +- 0.2 / -0.3 +- 0.5).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      'steps': 50_000,
      'batch_size': 4_096,
      'compute_dtype': 'bfloat16',
      'data': {'splits': ('balanced_train', 'unbalanced_train'), 'crop_seconds': 0.95, 'read_threads': 16},
      'encoder': {
        'name': 'audiontt',
        'conv_blocks': 2,
        'conv_channels': 64,
        'width': 2_048,
        'concat_conv': True,
        'concat_blocks': 2,
      },
      'projector': {'hidden_width': 4_096, 'output_width': 1_024},
      'objective': {'invariance': 5.0},
      'optimizer': {'name': 'adamw', 'learning_rate': 1e-3, 'warmup_steps': 2_500, 'weight_decay': 1e-4},
      'checkpoint': {'every_steps': 5_000},
    }
  )
