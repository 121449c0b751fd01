"""ViT-Base on AudioSet: 16 x 16 patches of six seconds of log-mel (85 million parameters, 3,072 features a frame).

Command:   python -m selfie_jax.train --config configs/audioset_vit.py --workdir DIR --config.data.path=RECORDS
           (RECORDS: what `python -m selfie_jax.prepare audioset` has written: a folder, gs:// or s3://.)
Hardware:  a TPU v5e slice of 256 chips, 16 clips on each. On fewer chips --config.remat=True computes the activations
           of a transformer block again instead of keeping them, and --config.microbatches=8 takes the batch in parts.
           --config.mesh.fsdp=8 would share one copy of parameters and optimizer among 8 chips; this size needs no
           such help. What it needs of a chip's memory is known without the chips:
           python -m selfie_jax.compile --config configs/audioset_vit.py --topology v5e:16x16
Not run:   it has been compiled for TPUs, and trained on none. Its run time and accuracy are not known.

A crop of 6.07 s makes 608 frames, 38 patches and nothing left over: 152 tokens. Learning rate, weight decay and batch
are those that MoCo v3 (arXiv 2104.02057) trains a ViT-Base on images with; the warm-up is a tenth of the run.
Augmentation is BYOL-A v2's. None of it has been tuned on audio here. The one thing carried over from the study of a
small encoder, which is no transformer (tests/study/STUDY.md: 25,600 clips, "tuning / test", pairs of three seeds), is
an invariance weight of 5: the 25 of VICReg has -1.1 +- 0.1 / -2.0 +- 0.7. It was never run at this scale.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      'steps': 50_000,
      'batch_size': 4_096,
      'compute_dtype': 'bfloat16',
      'data': {'splits': ('balanced_train', 'unbalanced_train'), 'crop_seconds': 6.07, 'read_threads': 16},
      'encoder': {'name': 'vit', 'size': 'base', 'patch': (16, 16), 'positions': 'sincos'},
      'projector': {'hidden_width': 4_096, 'output_width': 1_024},
      'objective': {'invariance': 5.0},
      'optimizer': {
        'name': 'adamw',
        'learning_rate': 1.5e-4,
        'base_batch_size': 256,
        'warmup_steps': 5_000,
        'weight_decay': 0.1,
        'clip_norm': 1.0,
      },
      'checkpoint': {'every_steps': 5_000},
    }
  )
