"""What a readout says of the clips that it is tested on."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What one readout of one representation predicts for the test clips of one split."""

  # (seeds, test clips) class numbers; of a multi-label task (seeds, test clips, classes) scores, higher is likelier.
  predictions: np.ndarray
  # For results.json: what was chosen on the validation set and how it went. Numbers, or lists with one a seed.
  details: dict[str, Any]
