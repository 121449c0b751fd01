"""Lists of rows of different lengths as arrays, for programs that take all of them at once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
  """Lists of rows, each filled up with zeros."""

  numbers: np.ndarray  # (members, longest), or cut into parts (members, parts, size), into the features.
  count: np.ndarray  # (members,) how many are real; they come first.


def pad_rows(lists: Sequence[np.ndarray]) -> Rows:
  """Pads lists of row numbers to the length of the longest."""
  longest = max(map(len, lists))
  numbers = np.stack([np.pad(rows, (0, longest - len(rows))) for rows in lists]).astype(np.int32)
  return Rows(numbers, np.array([len(rows) for rows in lists], np.int32))


def cut_rows(lists: Sequence[np.ndarray], size: int) -> Rows:
  """Pads lists of row numbers to one length, in parts of `size`, or of one part if the longest is shorter."""
  numbers, count = pad_rows(lists)
  size = min(size, numbers.shape[1])
  numbers = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % size)))
  return Rows(numbers.reshape(len(lists), -1, size), count)
