"""What the workers of a preparation do: a chunk of the input becomes a shard.

Workers are processes here or on other machines, which share nothing but the dataset's folder. They find the clips in
`.partial/clips.jsonl`; and a note in `.partial`, written when all else is in its place, says that a chunk is finished
and what was found in it. So a task may be repeated, or done by two workers at the same time: both write the same bytes,
each file appears whole, and whoever finds the note has nothing to do.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence

from etils import epath

from selfie_jax.data import audit, dataset
from selfie_jax.data import shard as shards
from selfie_jax.data.audit import Finding
from selfie_jax.data.clip import AudioFile, Clip, TfdsRecord
from selfie_jax.data.dataset import Source
from selfie_jax.data.shard import Shard
from selfie_jax.files import as_path, write_atomically

CLIPS = 'clips.jsonl'
_SOUNDS = {'file': AudioFile, 'tfds': TfdsRecord}
_KINDS = {kind: name for name, kind in _SOUNDS.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
  """Consecutive clips of the input, which become one shard. It is small: a pipeline's graph may hold thousands."""

  output: str  # The dataset's folder.
  shard: str  # A file name.
  split: str
  clips: int
  offset: int  # Of its lines in `CLIPS`, in bytes.
  length: int
  sample_rate: int
  source: Source


@dataclasses.dataclass(frozen=True, slots=True)
class Removal:
  """Clips to be taken out of the finished shard of a chunk."""

  chunk: Chunk
  names: tuple[str, ...]


def note_name(shard: str) -> str:
  """Returns the name, in `.partial`, of the note that a shard is made."""
  return f'{shard}.json'


def removal_name(shard: str) -> str:
  """Returns the name, in `.partial`, of the note that a shard has lost its duplicates."""
  return f'{shard}.removed.json'


def make(chunk: Chunk) -> None:
  """Reads the clips of a chunk and writes its shard, the shard's index and its note."""
  partial = as_path(chunk.output) / dataset.PARTIAL
  note = partial / note_name(chunk.shard)
  if note.exists():
    return
  findings: list[Finding] = []

  def examples() -> Iterator[shards.Example]:
    for clip in _read_clips(partial / CLIPS, chunk):
      finding, audio = audit.examine(clip, chunk.sample_rate, chunk.source)
      findings.append(finding)
      if audio is not None:
        yield shards.Example(clip.name, audio, chunk.sample_rate, _labels_of(clip))

  path = as_path(chunk.output) / chunk.shard
  made = shards.write_shard(path, chunk.split, examples(), chunk.source.audio_format)
  _write_note(note, {'shard': dataclasses.asdict(made), 'findings': [dataclasses.astuple(each) for each in findings]})


def remove(removal: Removal) -> None:
  """Writes the shard of a chunk anew, without the clips of these names, and a note of that."""
  chunk = removal.chunk
  note = as_path(chunk.output) / dataset.PARTIAL / removal_name(chunk.shard)
  if note.exists():
    return
  path = as_path(chunk.output) / chunk.shard
  left = shards.drop_clips(path, chunk.split, frozenset(removal.names), chunk.source.audio_format)
  _write_note(note, {'shard': dataclasses.asdict(left)})


def read_note(chunk: Chunk) -> tuple[Shard, list[Finding]]:
  """Returns the shard of a finished chunk, and what was found in its clips, in their order."""
  values = _read_json(as_path(chunk.output) / dataset.PARTIAL / note_name(chunk.shard))
  findings = [Finding(name, status, tuple(flags), *rest) for name, status, flags, *rest in values['findings']]
  return Shard(**values['shard']), findings


def read_removal(chunk: Chunk) -> Shard:
  """Returns what became of the shard of a chunk when it lost its duplicates."""
  return Shard(**_read_json(as_path(chunk.output) / dataset.PARTIAL / removal_name(chunk.shard))['shard'])


def encode_clip(clip: Clip) -> bytes:
  """Returns a clip as a line of `CLIPS`."""
  kind, place = _KINDS[type(clip.sound)], dataclasses.astuple(clip.sound)
  return json.dumps((clip.name, clip.split, clip.labels, clip.start, clip.seconds, kind, place)).encode() + b'\n'


def decode_clip(line: bytes) -> Clip:
  """Returns the clip of a line of `CLIPS`."""
  name, split, labels, start, seconds, kind, place = json.loads(line)
  return Clip(name, _SOUNDS[kind](*place), split, tuple(labels), start, seconds)


def _labels_of(clip: Clip) -> Sequence[int]:
  """Returns the labels of a clip whose sound has just been read: those of TFDS come with it."""
  if not isinstance(clip.sound, TfdsRecord):
    return clip.labels
  from selfie_jax.data import tfds_source  # Not at the top: it imports TensorFlow Datasets.

  return tfds_source.read_labels(clip.sound)


def _read_clips(path: epath.Path, chunk: Chunk) -> Sequence[Clip]:
  with path.open('rb') as file:
    file.seek(chunk.offset)
    return [decode_clip(line) for line in file.read(chunk.length).splitlines()]


def _write_note(path: epath.Path, values: dict[str, object]) -> None:
  with write_atomically(path) as file:
    file.write(json.dumps(values).encode())


def _read_json(path: epath.Path) -> dict:
  return json.loads(path.read_bytes())
