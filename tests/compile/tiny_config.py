"""As small a run as has every part of a real one, so that the TPU compiler is done with it in seconds."""

import ml_collections


def get_config():
  return ml_collections.ConfigDict(
    {
      'data': {'crop_seconds': 0.1},
      'log_mel': {'n_fft': 128, 'hop_length': 100, 'n_mels': 16},
      'augment': {'mixup_group': 4},
      'encoder': {'conv_blocks': 1, 'conv_channels': 8, 'width': 16},
      'projector': {'hidden_width': 32, 'output_width': 16},
    }
  )
