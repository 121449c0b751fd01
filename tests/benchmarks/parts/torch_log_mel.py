"""Log-mel spectrograms in PyTorch: torchaudio's MelSpectrogram, and its steps written out.

The wheels of torchaudio on PyPI need PyTorch's CUDA wheels. So that there is always a peer, `start` does what the class
does, step for step (torchaudio 2.11): a centred short-time Fourier transform by torch.stft, the square of its absolute
value, a product with Slaney's filters.
"""

from collections.abc import Callable

import librosa
import torch
from torch import Tensor

from tests.benchmarks.parts.log_mel import RATE, clips

N_FFT, HOP, N_MELS, F_MIN, F_MAX = 1_024, 160, 64, 60, 7_800
EPS = torch.finfo(torch.float32).eps


def start(samples: int) -> Callable[[], int]:
  """MelSpectrogram's steps."""
  window = torch.hann_window(N_FFT)
  filters = librosa.filters.mel(sr=RATE, n_fft=N_FFT, n_mels=N_MELS, fmin=F_MIN, fmax=F_MAX)
  filters = torch.from_numpy(filters.T.copy())

  def mel(audio: Tensor) -> Tensor:
    spectrum = torch.stft(audio, N_FFT, HOP, N_FFT, window, center=True, pad_mode='reflect', return_complex=True)
    return torch.matmul(spectrum.abs().pow(2).transpose(-1, -2), filters).transpose(-1, -2)

  return worker(mel, samples)


def start_torchaudio(samples: int) -> Callable[[], int]:
  """The class itself."""
  try:
    from torchaudio.transforms import MelSpectrogram
  except OSError as error:  # It was built for another PyTorch.
    raise ModuleNotFoundError(str(error), name='torchaudio') from error

  return worker(
    MelSpectrogram(RATE, N_FFT, N_FFT, HOP, F_MIN, F_MAX, n_mels=N_MELS, norm='slaney', mel_scale='slaney'), samples
  )


def worker(mel: Callable[[Tensor], Tensor], samples: int) -> Callable[[], int]:
  """From int16 clips to the logarithm."""
  audio = torch.from_numpy(clips(samples))

  @torch.inference_mode()
  def work() -> int:
    torch.log(mel(audio.float() / 32_768) + EPS)
    return len(audio)

  return work
