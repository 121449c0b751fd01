"""What the quick start plays, and on which side of a split each sound belongs.

Two rules keep the splits apart. A preset (an instrument of a sound bank) or a sample has one split in all that is
written. And since presets share recordings, within a bank and across the two, a recording belongs to the strictest
split that plays it (test before valid before train): a note that would use it in another split is left out.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from soundfont import DRUM_BANK, Note

STRICTEST_FIRST = ('test', 'valid', 'train')

# General MIDI programs (from 0) of the acoustic families, held out ones apart: for valid and for test.
FAMILIES = {
  'piano': ((0, 1, 2, 3, 7), (4,), (5, 6)),
  'chromatic_percussion': ((8, 11, 13, 14, 15), (9,), (10, 12)),
  'organ': ((19, 20, 21, 22, 23), (16,), (17, 18)),
  'guitar': ((24, 25, 27, 29, 30), (31,), (26, 28)),
  'bass': ((33, 35, 37, 38, 39), (34,), (32, 36)),
  'strings': ((40, 41, 44, 48, 49), (43,), (42, 45)),
  'brass': ((56, 57, 61, 62, 63), (60,), (58, 59)),
  'reed': ((64, 67, 68, 70, 71), (65,), (66, 69)),
  'pipe': ((75, 76, 77, 78, 79), (72,), (73, 74)),
}

# Drum types: keys of a General MIDI drum kit, and FoxDot's folders (its `Buffers.py` says which symbol is which).
DRUMS = {
  'kick': ((35, 36), ('x/lower', 'x/upper', 'v/lower', 'v/upper')),
  'snare': ((38, 40), ('o/lower', 'o/upper', 'u/lower', 'i/lower', 'i/upper', 'd/upper')),
  'clap': ((39,), ('_/asterix', 'h/upper')),
  'hi_hat': ((42, 44, 46), ('_/hyphen', '_/equals', '_/colon')),
  'cymbal': ((49, 51, 52, 53, 55, 57, 59), ('_/tilde', '_/hash')),
  'tom': ((41, 43, 45, 47, 48, 50), ('m/lower', 'm/upper')),
  'cowbell': ((56,), ('e/lower', 't/upper')),
  'hand_drum': ((60, 61, 62, 63, 64), ('p/lower', 'p/upper')),
  'shaker': ((54, 69, 70), ('s/lower', 's/upper', 'k/lower')),
  'stick': ((31, 37, 75), ('t/lower',)),
}

_CENTRAL_KEYS = range(36, 85)  # Two octaves either side of middle C.
_KEYS = range(24, 101)
_DRUM_KEYS = range(27, 88)
_PITCHES = range(54, 72)
_FARTHEST = 12  # Semitones that a recording may be transposed by.
_PER_PROGRAM = 24  # Notes of a program in `instrument_family`, so that no program outweighs its family.


@dataclasses.dataclass(frozen=True)
class Clip:
  """A file to write: a note to play or a sample to convert, its split and its label ('' in pre-training)."""

  name: str
  sound: Note | Path
  split: str
  label: str = ''


def plan(banks: dict[str, list[Note]], train_bank: str, samples: Path) -> dict[str, list[Clip]]:
  """Returns the clips of each folder: `pretrain` and the labelled ones.

  Args:
    banks: all notes of each sound bank, by its name.
    train_bank: the bank whose drum kits are trained on; the other one's are for valid, FoxDot's drums for test.
    samples: FoxDot's folder of samples: a folder a symbol, with `lower` and `upper` below it.
  """
  name_of_font = {notes[0].font: name for name, notes in banks.items()}
  split_of_program = {
    program: split
    for parts in FAMILIES.values()
    for split, programs in zip(('train', 'valid', 'test'), parts, strict=True)
    for program in programs
  }

  def split_of(note: Note) -> str:
    if note.bank == DRUM_BANK:
      return 'train' if name_of_font[note.font] == train_bank else 'valid'
    return split_of_program.get(note.program, 'train')

  def clip(note: Note, label: str = '') -> Clip:
    name = f'{name_of_font[note.font]}_{note.bank:03d}_{note.program:03d}_{note.key:03d}'
    return Clip(name, note, split_of(note), label)

  playable = [note for notes in banks.values() for note in notes if _is_playable(note)]
  notes = without_repeats(without_leaks(playable, split_of))
  tuned = [note for note in notes if note.bank != DRUM_BANK]
  central = [note for note in tuned if note.key in _CENTRAL_KEYS]
  hits = [note for note in notes if note.bank == DRUM_BANK]
  drum_samples, other_samples = _foxdot_clips(samples)
  return {
    'pretrain': [clip(note) for note in notes if split_of(note) == 'train'] + other_samples,
    'instrument_family': [
      clip(note, family)
      for family, parts in FAMILIES.items()
      for program in (program for programs in parts for program in programs)
      for note in _spread(_of_program(central, program), _PER_PROGRAM)
    ],
    'drum': [clip(note, drum) for drum, (keys, _) in DRUMS.items() for note in hits if note.key in keys] + drum_samples,
    'pitch': [
      clip(note, f'midi_{note.key}')
      for program in split_of_program
      for note in _of_program(central, program)
      if note.key in _PITCHES
    ],
  }


def _is_playable(note: Note) -> bool:
  if note.bank == DRUM_BANK:
    return note.key in _DRUM_KEYS
  return note.key in _KEYS and note.transposition <= _FARTHEST


def without_leaks(notes: Iterable[Note], split_of: Callable[[Note], str]) -> list[Note]:
  """Returns the notes without those that use a recording which a stricter split plays."""
  owner: dict[str, str] = {}
  for split in STRICTEST_FIRST:
    for note in notes:
      if split_of(note) == split:
        for recording in note.recordings:
          owner.setdefault(recording, split)
  return [note for note in notes if all(owner[recording] == split_of(note) for recording in note.recordings)]


def without_repeats(notes: Iterable[Note]) -> list[Note]:
  """Returns the notes without those that play the same recordings at the same key as one before: the banks overlap."""
  first: dict[tuple[frozenset[str], int], Note] = {}
  for note in notes:
    first.setdefault((note.recordings, note.key), note)
  return list(first.values())


def _of_program(notes: Iterable[Note], program: int) -> list[Note]:
  """Returns the program's notes of both banks, from the lowest key to the highest."""
  return sorted((note for note in notes if note.program == program), key=lambda note: note.key)


def _spread(notes: Sequence[Note], count: int) -> list[Note]:
  """Returns at most `count` notes, evenly from the first to the last."""
  count = min(count, len(notes))
  return [notes[i * len(notes) // count] for i in range(count)]


def _foxdot_clips(samples: Path) -> tuple[list[Clip], list[Clip]]:
  """Returns FoxDot's drums, labelled and for test, and its other samples, for pre-training."""
  drum_of = {folder: drum for drum, (_, folders) in DRUMS.items() for folder in folders}
  drums, others = [], []
  for path in sorted(samples.rglob('*.wav')):
    parts = path.relative_to(samples).with_suffix('').parts
    name = 'FoxDot_' + '_'.join(parts).replace(' ', '_')
    drum = drum_of.get('/'.join(parts[:-1]))
    if drum:
      drums.append(Clip(name, path, 'test', drum))
    else:
      others.append(Clip(name, path, 'train'))
  return drums, others
