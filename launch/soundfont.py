"""Plays the notes of a SoundFont: which recordings a note uses, and its sound.

SoundFont 2.04 is the format, sf2utils reads it: a preset (bank, program) has layers, each one an instrument; an
instrument has zones, each one a range of keys and velocities with a recording, the key it was recorded at, and
"generators" that say how to play it. A preset's generators are added to its instruments', and a first zone without a
recording holds the defaults of the others. Filters, modulation and effects are left out: what is wanted are recordings.
"""

import contextlib
import dataclasses
import functools
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soxr
from sf2utils.bag import Sf2Bag
from sf2utils.generator import Sf2Gen
from sf2utils.preset import Sf2Preset
from sf2utils.sample import Sf2Sample
from sf2utils.sf2parse import Sf2File

DRUM_BANK = 128
_VELOCITY = 100  # Of 127. It chooses among recordings; loudness itself is not kept.
_RENDER_RATE = (
  32_000  # Linear interpolation leaves images: most of them lie above 8 kHz here, and resampling cuts them.
)
_SHORTEST = 1e-3  # Seconds of attack, decay and release at least.
_COARSE = 32_768  # Frames in a unit of the coarse address generators.

Generators = dict[int, Sf2Gen]


@dataclasses.dataclass(frozen=True)
class Voice:
  """One recording as a note plays it. Times are in seconds, an attack's is linear, a decay's is per 100 dB."""

  recording: str  # Digest of the frames: the same recording in two banks has the same one.
  offset: int  # In the file, in bytes.
  frames: int
  loop: tuple[int, int] | None  # From and up to frame.
  speed: float  # Frames a second.
  gain: float
  attack: float
  hold: float
  decay: float
  sustain: float  # Decibels below the peak.
  release: float


@dataclasses.dataclass(frozen=True)
class Note:
  """A key of a preset."""

  font: Path
  bank: int
  program: int
  key: int
  voices: tuple[Voice, ...]
  transposition: int  # Semitones from the nearest key that was recorded.

  @property
  def recordings(self) -> frozenset[str]:
    """Digests of the recordings that sound."""
    return frozenset(voice.recording for voice in self.voices)


# -------------------------------------------------------------------------------------------------------------- reading


def read_notes(font: Path) -> list[Note]:
  """Returns every note that the presets of `font` can play, by bank, program and key."""
  with open_presets(font) as presets:
    presets.sort(key=lambda preset: (preset.bank, preset.preset))
    return [note for preset in presets for note in _preset_notes(font, preset)]


@contextlib.contextmanager
def open_presets(font: Path) -> Iterator[list[Sf2Preset]]:
  """Yields the presets of a font, which are read from its file as they are used."""
  logging.disable(logging.WARNING)  # sf2utils tells the root logger of each harmless oddity of old fonts.
  try:
    with font.open('rb') as file:
      yield [preset for preset in Sf2File(file).presets if hasattr(preset, 'bank')]  # The last is a terminator.
  finally:
    logging.disable(logging.NOTSET)


def _preset_notes(font: Path, preset: Sf2Preset) -> Iterator[Note]:
  voices: dict[int, list[tuple[Voice, int]]] = {}
  for layer, added in zones_of(preset.bags, Sf2Gen.OPER_INSTRUMENT):
    for zone, own in zones_of(layer.instrument.bags, Sf2Gen.OPER_SAMPLE_ID):
      if _VELOCITY not in common_range(Sf2Gen.OPER_VEL_RANGE, added, own):
        continue
      for key in common_range(Sf2Gen.OPER_KEY_RANGE, added, own):
        voices.setdefault(key, []).append(_voice(zone.sample, key, own, added))
  for key, parts in sorted(voices.items()):
    sounding, distances = zip(*parts, strict=True)
    yield Note(font, preset.bank, preset.preset, key, sounding, min(distances))


def zones_of(bags: Sequence[Sf2Bag], target: int) -> Iterator[tuple[Sf2Bag, Generators]]:
  """Yields each bag that leads to a `target`, with its generators over the defaults of the first bag."""
  defaults = bags[0].gens if bags and target not in bags[0].gens else {}
  for bag in bags:
    if target in bag.gens:
      yield bag, defaults | bag.gens


def common_range(generator: int, *levels: Generators) -> range:
  """Returns the keys or velocities in the range of every level; where none is given, it is all of them."""
  limits = [level[generator].amount_as_sorted_range if generator in level else (0, 127) for level in levels]
  lows, highs = zip(*limits, strict=True)
  return range(max(lows), min(highs) + 1)


def _voice(sample: Sf2Sample, key: int, own: Generators, added: Generators) -> tuple[Voice, int]:
  """Returns how `key` plays the sample, and by how many semitones that transposes it."""

  def instrument(generator: int, default: int = 0) -> int:
    return own[generator].short if generator in own else default

  def total(generator: int, default: int = 0) -> int:
    return instrument(generator, default) + (added[generator].short if generator in added else 0)

  def seconds(generator: int) -> float:
    return 2.0 ** (total(generator, -12_000) / 1_200)  # Timecents.

  def moved(frame: int, fine: int, coarse: int) -> int:
    return min(max(frame + instrument(fine) + _COARSE * instrument(coarse), 0), sample.duration)

  root = instrument(Sf2Gen.OPER_OVERRIDING_ROOT_KEY, -1)
  root = sample.original_pitch if root < 0 else root
  semitones = (key - root) * instrument(Sf2Gen.OPER_SCALE_TUNING, 100) / 100 + total(Sf2Gen.OPER_COARSE_TUNE)
  cents = total(Sf2Gen.OPER_FINE_TUNE) + sample.pitch_correction
  first = moved(0, Sf2Gen.OPER_START_ADDR_OFFSET, Sf2Gen.OPER_START_ADDR_COARSE_OFFSET)
  last = moved(sample.duration, Sf2Gen.OPER_END_ADDR_OFFSET, Sf2Gen.OPER_END_ADDR_COARSE_OFFSET)
  start = moved(sample.start_loop, Sf2Gen.OPER_START_LOOP_ADDR_OFFSET, Sf2Gen.OPER_START_LOOP_ADDR_COARSE_OFFSET)
  end = moved(sample.end_loop, Sf2Gen.OPER_END_LOOP_ADDR_OFFSET, Sf2Gen.OPER_END_LOOP_ADDR_COARSE_OFFSET)
  loops = instrument(Sf2Gen.OPER_SAMPLE_MODES) & 1 and first <= start < end <= last
  voice = Voice(
    recording=_digest(sample),
    offset=sample.smpl_offset + 2 * (sample.start + first),
    frames=last - first,
    loop=(start - first, end - first) if loops else None,
    speed=sample.sample_rate * 2.0 ** ((semitones + cents / 100) / 12),
    gain=10.0 ** (-0.4 * total(Sf2Gen.OPER_INITIAL_ATTENUATION) / 200),  # Centibel; 0.4: as EMU's hardware took them.
    attack=max(seconds(Sf2Gen.OPER_ATTACK_VOL_ENV), _SHORTEST),
    hold=seconds(Sf2Gen.OPER_HOLD_VOL_ENV),
    decay=max(seconds(Sf2Gen.OPER_DECAY_VOL_ENV), _SHORTEST),
    sustain=min(max(total(Sf2Gen.OPER_SUSTAIN_VOL_ENV) / 10, 0.0), 100.0),
    release=max(seconds(Sf2Gen.OPER_RELEASE_VOL_ENV), _SHORTEST),
  )
  return voice, round(abs(semitones))


@functools.cache
def _digest(sample: Sf2Sample) -> str:
  return hashlib.sha256(sample.raw_sample_data).hexdigest()


# -------------------------------------------------------------------------------------------------------------- playing


def render(note: Note, sample_rate: int, hold: float, release: float) -> np.ndarray:
  """Returns the sound of `note`, its key held for `hold` seconds and released for `release`: float32, mono."""
  times = np.arange(round((hold + release) * _RENDER_RATE)) / _RENDER_RATE
  sound = sum(voice.gain * _level(voice, times, hold) * _play(voice, note.font, times) for voice in note.voices)
  return soxr.resample(sound.astype(np.float32), _RENDER_RATE, sample_rate)


def _play(voice: Voice, font: Path, times: np.ndarray) -> np.ndarray:
  """Returns the recording at the voice's speed, looped where it loops, silent after its end."""
  frames = np.fromfile(font, '<i2', voice.frames, offset=voice.offset) / 32_768
  position = times * voice.speed
  if voice.loop:
    start, end = voice.loop
    position = np.where(position < end, position, start + (position - start) % (end - start))
  return np.interp(position, np.arange(voice.frames), frames, right=0.0)


def _level(voice: Voice, times: np.ndarray, hold: float) -> np.ndarray:
  """Returns the envelope: linear attack, hold, decay in dB to the sustained level, release in dB from `hold` on."""
  decayed = np.clip((times - voice.attack - voice.hold) / voice.decay * 100, 0, voice.sustain)
  released = np.maximum(times - hold, 0) / voice.release * 100
  return np.minimum(times / voice.attack, 1) * 10 ** (-(decayed + released) / 20)
