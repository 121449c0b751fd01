"""Two views of one spectrogram in PyTorch, as a Dataset makes them in a loader's worker process.

BYOL-A v2's published recipe (arXiv 2103.06695, 2204.07402), one example at a time: log-mixup-exp with one of the last
2,048 inputs, a random crop of a zero canvas resized to the input's size, a random line over time. Its random numbers
are Python's: for an example's few draws they are the cheapest.
"""

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

EPS = torch.finfo(torch.float32).eps


class Mixup:
  """log((1 - a) e^x + a e^z + eps), a uniform in [0, ratio), z one of the last inputs."""

  def __init__(self, ratio: float = 0.2, memory: int = 2_048) -> None:
    self._ratio = ratio
    self._memory = memory
    self._past: list[Tensor] = []
    self._next = 0

  def __call__(self, x: Tensor) -> Tensor:
    mixed = x
    if self._past:
      a = self._ratio * random.random()
      other = self._past[random.randrange(len(self._past))]
      mixed = torch.log((1 - a) * torch.exp(x) + a * torch.exp(other) + EPS)
    if len(self._past) < self._memory:
      self._past.append(x)
    else:
      self._past[self._next] = x
      self._next = (self._next + 1) % self._memory
    return mixed


class ResizeCrop:
  """A random rectangle of a zero canvas 1.5 times as wide as its input, resized to the input's size."""

  def __init__(self, scale: tuple[float, float] = (0.6, 1.5), canvas: float = 1.5) -> None:
    self._scale = scale
    self._canvas = canvas

  def __call__(self, x: Tensor) -> Tensor:
    n_mels, frames = x.shape[-2:]
    width = int(self._canvas * frames)
    margin = (width - frames) // 2
    canvas = torch.zeros(1, 1, n_mels, width)
    canvas[0, 0, :, margin : margin + frames] = x
    rows = min(max(int(random.uniform(*self._scale) * n_mels), 1), n_mels)
    columns = min(max(int(random.uniform(*self._scale) * frames), 1), width)
    top, left = random.randint(0, n_mels - rows), random.randint(0, width - columns)
    crop = canvas[:, :, top : top + rows, left : left + columns]
    return interpolate(crop, size=(n_mels, frames), mode='bicubic', align_corners=True)[0]


def fade(x: Tensor) -> Tensor:
  """Adds a line over time between two numbers that are uniform in [-1, 1]."""
  start, end = random.uniform(-1, 1), random.uniform(-1, 1)
  return x + torch.linspace(start, end, x.shape[-1])


class Pairs(Dataset):
  """Two views of each of some z-scored log-mel spectrograms (1, n_mels, frames)."""

  def __init__(self, spectrograms: Tensor) -> None:
    self._spectrograms = spectrograms
    self._mixup = Mixup()
    self._crop = ResizeCrop()

  def __len__(self) -> int:
    return len(self._spectrograms)

  def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
    x = self._spectrograms[index]
    return self._view(x), self._view(x)

  def _view(self, x: Tensor) -> Tensor:
    return fade(self._crop(self._mixup(x)))


def start(batch_size: int, n_mels: int, frames: int) -> Callable[[], int]:
  """Ready for batches of pairs, with the memory of past inputs full."""
  torch.set_num_threads(1)  # As in a worker process of a DataLoader.
  x = np.random.default_rng(0).standard_normal((2_048, 1, n_mels, frames)).astype(np.float32)
  pairs = Pairs(torch.from_numpy(x))
  for index in range(len(pairs)):
    pairs[index]

  def work() -> int:
    examples = [pairs[random.randrange(len(pairs))] for _ in range(batch_size)]
    tuple(torch.stack(views) for views in zip(*examples, strict=True))
    return batch_size

  return work
