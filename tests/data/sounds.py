"""Sounds for the tests: a synthetic voice, and folders and datasets of it."""

import dataclasses
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile

from selfie_jax.config import LogMel
from selfie_jax.data import dataset, shard
from selfie_jax.files import as_path

RATE = 16_000


def voice(seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
  """A vowel-like sound: pulses of a gliding pitch through three resonances, with some breath; float64, peak 0.5."""
  rng = np.random.default_rng(seed)
  pitch = np.linspace(*rng.uniform(90, 300, 2), round(seconds * rate))
  sound = np.diff(np.floor(np.cumsum(pitch) / rate), prepend=0) + 0.02 * rng.standard_normal(len(pitch))
  for formant in rng.uniform((300, 900, 2_000), (800, 1_800, 3_000)):
    pole = 0.97 * np.exp(2j * np.pi * formant / rate)
    sound = scipy.signal.lfilter([1], [1, -2 * pole.real, abs(pole) ** 2], sound)
  return 0.5 * sound / np.abs(sound).max()


def voice_int16(seconds: float, seed: int) -> np.ndarray:
  return np.rint(32_767 * voice(seconds, seed)).astype(np.int16)


def write_wavs(folder: Path, count: int, seconds: float = 0.5) -> list[str]:
  """Writes 16-bit WAVs in two folders and returns their names, sorted."""
  names = [f'{"ab"[i % 2]}/voice{i:03d}.wav' for i in range(count)]
  for i, name in enumerate(names):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, voice_int16(seconds + i % 5 / 10, i), RATE)
  return sorted(names)


def write_dataset(
  folder: Path | str,
  clips: list[np.ndarray],
  clips_per_shard: int = 8,
  splits: dict[str, int] | None = None,
  audio_format: str = 'int16',
) -> Path | str:
  """Writes a dataset, here or in an object store, without going through audio files; `splits` are clips of each."""
  splits = splits or {'train': len(clips)}
  entries, parts, first = [], [], 0
  for split, count in splits.items():
    mine = [(f'{i}.wav', clips[i], RATE, [i % 2]) for i in range(first, first + count)]
    groups = [mine[i : i + clips_per_shard] for i in range(0, count, clips_per_shard)]
    for number, group in enumerate(groups):
      path = as_path(folder) / f'{split}-{number:05d}-of-{len(groups):05d}.tfrecord'
      path.parent.mkdir(parents=True, exist_ok=True)
      entries.append(shard.write_shard(path, split, group, audio_format))
    parts.append(dataset.Split(split, count, sum(len(samples) for _, samples, *_ in mine) / RATE / 3_600))
    first += count
  manifest = dataset.Manifest(
    format_version=dataset.FORMAT_VERSION,
    command='a test',
    num_clips=len(clips),
    hours=sum(map(len, clips)) / RATE / 3_600,
    sample_rate=RATE,
    log_mel=LogMel(),
    mean=-5.0,
    std=3.0,
    classes=('even', 'odd'),
    class_mids=(),
    splits=tuple(parts),
    audit=dataset.Audit(len(clips), len(clips), 0, 0, 0, 0, 0, 0, 0, 0),
    source=dataset.Source('folder', '', clips_per_shard, 0.1, -70.0, audio_format),
    shards=tuple(entries),
  )
  dataset.write_manifest(folder, manifest)
  return folder


def edit_manifest(folder: Path | str, **changes: object) -> None:
  dataset.write_manifest(folder, dataclasses.replace(dataset.load_manifest(folder), **changes))


def flip_byte(file: Path, position: int) -> None:
  content = bytearray(file.read_bytes())
  content[position] ^= 0x01
  file.write_bytes(content)
