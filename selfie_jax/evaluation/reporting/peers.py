"""Published linear evaluations of audio encoders, to see one's own figures beside. Nothing here was measured by us.

Accuracy in % under EVAR's protocol, as read in the READMEs of EVAR (https://github.com/nttcslab/eval-audio-repr),
BYOL-A (https://github.com/nttcslab/byol-a) and MSM-MAE (https://github.com/nttcslab/msm-mae).
"""

# The nine tasks' names, as `prepare task` writes them, and for people.
TASKS = {
  'esc50': 'ESC-50',
  'us8k': 'UrbanSound8K',
  'spcv2': 'Speech Commands V2',
  'vc1': 'VoxCeleb1',
  'voxforge': 'VoxForge',
  'cremad': 'CREMA-D',
  'gtzan': 'GTZAN',
  'nsynth': 'NSynth',
  'surge': 'Surge',
}

# A value a task, in the order of TASKS; None: not published.
_ACCURACIES = {
  'BYOL-A v2': (83.2, 79.7, 93.1, 57.6, 93.3, 63.8, 70.1, 73.1, 37.6),
  'BYOL-A v1, 512-d': (None, 78.2, 88.9, 33.4, 83.5, None, None, 69.1, None),
  'MSM-MAE': (89.1, 84.3, 93.1, 56.1, 97.5, 70.1, 79.3, 76.9, 37.5),
  'M2D/0.7': (91.3, 87.6, 96.0, 73.4, 98.3, 73.0, 84.1, 75.7, 42.1),
  'ATST-Frame': (90.9, 85.8, 94.9, 77.4, 98.8, 72.3, 82.9, 75.9, 40.6),
  'BEATs iter3': (86.9, 84.8, 89.4, 41.4, 94.1, 64.7, 72.6, 75.9, 39.3),
  'wav2vec 2.0-C': (57.6, 66.9, 96.6, 40.9, 99.2, 65.5, 57.8, 56.6, 15.2),
  'PANNs CNN14 (supervised)': (90.7, 81.9, 51.8, 7.8, 75.1, 51.8, 78.7, 65.9, 10.9),
}
PEERS = {model: dict(zip(TASKS, values, strict=True)) for model, values in _ACCURACIES.items()}
