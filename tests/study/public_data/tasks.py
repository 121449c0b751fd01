"""The folders that are built, and what each is made of."""

import dataclasses
from collections.abc import Callable, Iterator

from tests.study.public_data import drums, events, notes, speech, unlabelled
from tests.study.public_data.folders import Clip, Row
from tests.study.public_data.packages import Unpacked


@dataclasses.dataclass(frozen=True)
class Task:
  """A folder of clips."""

  name: str
  packages: tuple[str, ...]
  clips: Callable[[Unpacked], Iterator[Clip]]
  # Where the splits depend on which clips there are: takes the rows, returns them with their splits.
  assign_splits: Callable[[list[Row]], list[Row]] | None = None


TASKS = (
  Task('language', speech.LANGUAGE_PACKAGES, speech.language_clips),
  Task('voice', (speech.HEDGEWARS,), speech.voice_clips),
  Task('mandarin_tone', (speech.GCIN,), speech.tone_clips),
  Task('mandarin_initial', (speech.GCIN,), speech.initial_clips),
  Task('instrument', notes.PACKAGES, notes.instrument_clips),
  Task('pitch', notes.PACKAGES, notes.pitch_clips),
  Task('drum', drums.PACKAGES, drums.drum_clips),
  Task('sound_event', events.PACKAGES, events.event_clips, events.assign_splits),
  Task('unlabelled', unlabelled.PACKAGES, unlabelled.unlabelled_clips),
)
