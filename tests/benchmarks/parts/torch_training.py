"""Whole training in PyTorch: a Dataset of wav files that gives two views of a crop, a DataLoader, the peer's step."""

from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks import torch_peer
from tests.benchmarks.parts.log_mel import RATE
from tests.benchmarks.parts.torch_log_mel import EPS, F_MAX, F_MIN, HOP, N_FFT, N_MELS
from tests.benchmarks.parts.torch_views import Mixup, ResizeCrop, fade

CROP = 15_200
MEAN, STD = -5.0, 3.0
WORKERS = 2
EPOCHS = 1_000  # In one: a DataLoader drains its workers at an epoch's end, which is rare where there is much data.


class Pairs(Dataset):
  """Two views (1, 64, 96) of a random crop of each wav file."""

  def __init__(self, wavs: Path) -> None:
    self._files = sorted(map(str, wavs.glob('*.wav')))
    self._window = torch.hann_window(N_FFT)
    filters = librosa.filters.mel(sr=RATE, n_fft=N_FFT, n_mels=N_MELS, fmin=F_MIN, fmax=F_MAX)
    self._filters = torch.from_numpy(filters)
    self._mixup, self._crop = Mixup(), ResizeCrop()

  def __len__(self) -> int:
    return EPOCHS * len(self._files)

  def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
    with soundfile.SoundFile(self._files[index % len(self._files)]) as file:
      file.seek(np.random.randint(file.frames - CROP + 1))  # noqa: NPY002 (What they use.)
      audio = torch.from_numpy(file.read(CROP, dtype='float32'))
    spectrum = torch.stft(audio, N_FFT, HOP, window=self._window, return_complex=True)
    x = (torch.log(self._filters @ spectrum.abs().square() + EPS)[None] - MEAN) / STD
    return self._view(x), self._view(x)

  def _view(self, x: Tensor) -> Tensor:
    return fade(self._crop(self._mixup(x)))


def start(wavs: str, batch_size: int) -> Callable[[], int]:
  """The loader at work, and the step ready."""
  loader = DataLoader(Pairs(Path(wavs)), batch_size, shuffle=True, num_workers=WORKERS, drop_last=True)
  batches, step = iter(loader), torch_peer.make_step()

  def work() -> int:
    step(*next(batches)).item()
    return batch_size

  return work
