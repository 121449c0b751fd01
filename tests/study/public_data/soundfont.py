"""Plays the notes of a SoundFont as the study's clips have them.

launch/soundfont.py reads the format and says how it is built. The quick start's player hears a key's release,
moved starts and ends, and a preset's share of the envelope; this one does not, and resamples otherwise. The study's
records rest on its samples: it stays as it is.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from sf2utils.bag import Sf2Bag
from sf2utils.generator import Sf2Gen
from sf2utils.sample import Sf2Sample

from launch.soundfont import Generators, common_range, open_presets, zones_of
from tests.study.public_data.sounds import resample

_BANK = 0  # General MIDI's instruments.
_VELOCITY = 100  # Of 127.
_RATE = 44_100
_SECONDS = 2.0
_FADE = 0.05  # Seconds.
_SHORTEST_LOOP = 8  # Frames.


@dataclasses.dataclass(frozen=True)
class Zone:
  """A recording and how an instrument plays it. Times are in seconds; a decay's is for 100 dB."""

  recording: np.ndarray  # (frames,) int16.
  rate: int  # Frames a second.
  loop: tuple[int, int] | None  # From and up to frame.
  keys: range
  root: int  # The key it was recorded at.
  cents_per_key: int
  semitones: int  # Added to the pitch,
  cents: int  # and these.
  centibels: float  # Taken from the level.
  attack: float
  hold: float
  decay: float
  sustain: int  # Centibels below the peak.


@dataclasses.dataclass(frozen=True)
class Preset:
  """An instrument of General MIDI."""

  name: str
  zones: tuple[Zone, ...]

  def zones_at(self, key: int) -> list[Zone]:
    """Returns what sounds when a key is struck."""
    return [zone for zone in self.zones if key in zone.keys]


# -------------------------------------------------------------------------------------------------------------- reading


def read_presets(font: Path) -> dict[int, Preset]:
  """Returns the instruments of a bank, by their General MIDI program, from 0."""
  data = np.memmap(font, np.uint8, 'r')
  with open_presets(font) as presets:
    return {
      preset.preset: Preset(preset.name, tuple(_heard_zones(data, preset.bags)))
      for preset in presets
      if preset.bank == _BANK
    }


def _heard_zones(data: np.ndarray, bags: Sequence[Sf2Bag]) -> Iterator[Zone]:
  for layer, added in zones_of(bags, Sf2Gen.OPER_INSTRUMENT):
    for bag, own in zones_of(layer.instrument.bags, Sf2Gen.OPER_SAMPLE_ID):
      sample = bag.sample
      heard = _VELOCITY in common_range(Sf2Gen.OPER_VEL_RANGE, added, own)
      if heard and not sample.in_rom and sample.duration > 0:
        yield _zone(data, sample, own, added)


def _zone(data: np.ndarray, sample: Sf2Sample, own: Generators, added: Generators) -> Zone:
  """Returns a zone from the bank's bytes, an instrument's generators and those that its preset adds."""

  def instrument(generator: int, default: int = 0) -> int:
    return own[generator].short if generator in own else default

  def total(generator: int) -> int:
    return instrument(generator) + (added[generator].short if generator in added else 0)

  def seconds(generator: int) -> float:
    return 2.0 ** (instrument(generator, -12_000) / 1_200)  # Timecents.

  root = instrument(Sf2Gen.OPER_OVERRIDING_ROOT_KEY, -1)
  loops = instrument(Sf2Gen.OPER_SAMPLE_MODES) & 1 and sample.loop_duration > _SHORTEST_LOOP
  offset = sample.smpl_offset + 2 * sample.start
  return Zone(
    recording=data[offset : offset + 2 * sample.duration].view('<i2'),
    rate=sample.sample_rate,
    loop=(sample.start_loop, sample.end_loop) if loops else None,
    keys=common_range(Sf2Gen.OPER_KEY_RANGE, added, own),
    root=root if 0 <= root < 128 else sample.original_pitch,
    cents_per_key=instrument(Sf2Gen.OPER_SCALE_TUNING, 100),
    semitones=total(Sf2Gen.OPER_COARSE_TUNE),
    cents=total(Sf2Gen.OPER_FINE_TUNE) + sample.pitch_correction,
    centibels=0.4 * total(Sf2Gen.OPER_INITIAL_ATTENUATION),  # 0.4: as EMU's hardware took them.
    attack=seconds(Sf2Gen.OPER_ATTACK_VOL_ENV),
    hold=seconds(Sf2Gen.OPER_HOLD_VOL_ENV),
    decay=seconds(Sf2Gen.OPER_DECAY_VOL_ENV),
    sustain=min(max(instrument(Sf2Gen.OPER_SUSTAIN_VOL_ENV), 0), 1_000),
  )


# -------------------------------------------------------------------------------------------------------------- playing


def play(preset: Preset, key: int) -> np.ndarray:
  """Returns two seconds of a key that is held, (samples,) float32 at 16 kHz, faded out at their end."""
  frames = int(_SECONDS * _RATE)
  sound = np.zeros(frames)
  for zone in preset.zones_at(key):
    sound += _sound(zone, key, frames) * _level(zone, frames) * 10 ** (-zone.centibels / 200)
  fade = int(_FADE * _RATE)
  sound[-fade:] *= np.linspace(1, 0, fade)
  return resample(sound, _RATE)


def _sound(zone: Zone, key: int, frames: int) -> np.ndarray:
  """Returns the recording at the key's pitch, looped where it loops, silent after its end."""
  semitones = (key - zone.root) * zone.cents_per_key / 100 + zone.semitones + zone.cents / 100
  position = np.arange(frames) * (zone.rate / _RATE * 2 ** (semitones / 12))
  if zone.loop:
    start, end = zone.loop
    position = np.where(position >= end, start + np.mod(position - start, end - start), position)
  return np.interp(position, np.arange(len(zone.recording)), zone.recording / 32_768, right=0.0)


def _level(zone: Zone, frames: int) -> np.ndarray:
  """Returns the envelope: a linear attack, hold, and a decay in dB to the sustained level."""
  times = np.arange(frames) / _RATE
  risen = np.minimum(times / max(zone.attack, 0.002), 1.0)
  decayed = np.clip((times - zone.attack - zone.hold) / max(zone.decay, 1e-3), 0, 1) * 1_000
  return risen * 10 ** (-np.minimum(decayed, zone.sustain) / 200)
