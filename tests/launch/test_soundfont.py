import numpy as np
import pytest
from quickstart_data import fetch
from soundfont import read_notes, render

RATE = 16_000


@pytest.fixture(scope='module')
def notes(downloads):
  return read_notes(fetch(downloads) / 'pretty_midi/pretty_midi/TimGM6mb.sf2')


def pick(notes, bank, program, key):
  return next(note for note in notes if (note.bank, note.program, note.key) == (bank, program, key))


def test_a_bank_has_all_instruments_of_general_midi_and_drum_kits(notes):
  assert {note.program for note in notes if note.bank == 0} == set(range(128))
  assert len({note.program for note in notes if note.bank == 128}) == 8


def test_a_note_sounds_at_its_pitch(notes):
  flute = render(pick(notes, 0, 73, 69), RATE, 1.0, 0.0)
  spectrum = np.abs(np.fft.rfft(flute * np.hanning(len(flute))))
  assert np.argmax(spectrum) * RATE / len(flute) == pytest.approx(440, rel=0.01)


def test_a_held_note_is_looped_and_a_released_one_dies_away(notes):
  organ = render(pick(notes, 0, 19, 60), RATE, 1.5, 0.5)
  loudness = [np.sqrt(np.mean(part**2)) for part in np.split(organ, 8)]  # Quarters of a second.
  assert loudness[5] > 0.5 * loudness[1]
  assert loudness[7] < 0.1 * loudness[5]


def test_a_plucked_note_decays_while_it_is_held(notes):
  guitar = render(pick(notes, 0, 24, 60), RATE, 2.0, 0.0)
  assert np.abs(guitar[-RATE // 4 :]).max() < 0.5 * np.abs(guitar[: RATE // 4]).max()


def test_keys_that_share_a_recording_say_so(notes):
  low, high = pick(notes, 0, 73, 61), pick(notes, 0, 73, 62)
  assert low.recordings == high.recordings
  assert low.recordings != pick(notes, 0, 73, 84).recordings
