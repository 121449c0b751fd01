"""What is good enough for a dataset, and the list of what is not."""

import collections
import csv
import dataclasses
import hashlib
import io
from collections.abc import Iterable, Sequence

import numpy as np
import rich.markup
import rich.table

from selfie_jax.data.clip import AudioFile, Clip
from selfie_jax.data.dataset import Audit, Source
from selfie_jax.data.decode import DecodeError, EmptyError
from selfie_jax.data.shard import MAX_SAMPLES
from selfie_jax.data.sounds import place_of, read_sound
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, write_atomically

COLUMNS = ('name', 'split', 'status', 'flags', 'reason', 'seconds', 'level_dbfs', 'clipped', 'file')
_BAD = ('unreadable', 'empty', 'too_short', 'silent')
_LEFT_OUT = ('missing', *_BAD, 'duplicate')
_FLAGS = ('short', 'clipped')
# Encoders and resampling take or add some milliseconds. AudioSet's segments are 10 s long, but for the ends of videos.
_SHORT_SECONDS = 0.1
# A loud master touches full scale here and there. One sample in a thousand, 16 a second, is a recording whose peaks are
# cut off.
_CLIPPED_SHARE = 0.001
_FULL_SCALE = 32_767
_NAMED = 3  # Clips of each kind that are named on the screen; the CSV names all.
_DIGEST_BYTES = 16  # Of 32: 2 million clips take 32 MB, and no two that differ will ever share one.


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
  """What became of a clip: `status` is 'ok' or one of the counts of `Audit`, `reason` says more.

  The last three are known only of a sound that was read: its level (`loudness`), the share of its samples at full
  scale, and a digest of them in hexadecimal.
  """

  name: str
  status: str
  flags: tuple[str, ...] = ()  # What is wrong with a clip that is kept all the same: 'short', 'clipped'.
  reason: str = ''
  samples: int = 0
  level: float | None = None
  clipped: float | None = None
  digest: str = ''


def examine(clip: Clip, sample_rate: int, source: Source) -> tuple[Finding, np.ndarray | None]:
  """Reads the sound of a clip and judges it.

  Returns:
    What was found; and the audio, (samples,) int16, if it is to be kept.
  """
  try:
    audio = read_sound(clip, sample_rate)
  except EmptyError as error:
    return Finding(clip.name, 'empty', reason=error.reason), None
  except DecodeError as error:
    return Finding(clip.name, 'unreadable', reason=error.reason), None
  seconds = len(audio) / sample_rate
  found = Finding(
    clip.name,
    'ok',
    samples=len(audio),
    level=round(loudness(audio), 2),
    clipped=round(float(np.mean((audio >= _FULL_SCALE) | (audio <= -_FULL_SCALE))), 5),
    digest=hashlib.sha256(audio.astype('<i2')).hexdigest()[: 2 * _DIGEST_BYTES],
  )
  if len(audio) > MAX_SAMPLES:
    longest = MAX_SAMPLES / sample_rate / 3_600
    reason = f'{seconds / 3_600:.1f} h, and a record holds {longest:.1f} h: cut it into shorter ones'
    return dataclasses.replace(found, status='unreadable', reason=reason), None
  if seconds < source.min_seconds:
    reason = f'{seconds:.3f} s, under {source.min_seconds:g} s'
    return dataclasses.replace(found, status='too_short', reason=reason), None
  if found.level < source.silence_dbfs:
    reason = f'{found.level:.1f} dBFS, under {source.silence_dbfs:g} dBFS'
    return dataclasses.replace(found, status='silent', reason=reason), None
  flags = {}
  if clip.seconds is not None and seconds < clip.seconds - _SHORT_SECONDS:
    flags['short'] = f'{seconds:.2f} of {clip.seconds:g} s'
  if found.clipped > _CLIPPED_SHARE:
    flags['clipped'] = f'{found.clipped:.1%} of its samples are at full scale'
  return dataclasses.replace(found, flags=tuple(flags), reason='; '.join(flags.values())), audio


def loudness(audio: np.ndarray) -> float:
  """RMS around the mean (a constant offset is no sound) in dB, 0 being that of a full-scale square wave.

  Args:
    audio: (samples,) int16, not empty.
  """
  with np.errstate(divide='ignore'):
    return float(20 * np.log10(np.std(audio, dtype=np.float64) / 32_768))


def digests_of(findings: Sequence[Finding]) -> np.ndarray:
  """Returns (findings, 2) uint64: the digests of those that are ok, and zeros."""
  nothing = '00' * _DIGEST_BYTES
  digits = ''.join(finding.digest if finding.status == 'ok' else nothing for finding in findings)
  return np.frombuffer(bytes.fromhex(digits), np.uint64).reshape(-1, 2)


def first_of_each(digests: np.ndarray, ranks: np.ndarray) -> np.ndarray:
  """Returns, for each clip, the number of the clip of the same audio that stays: its own, unless it is a duplicate.

  That of the lowest rank stays, and of those the first one.

  Args:
    digests: (clips, 2) uint64; zeros are like no other.
    ranks: (clips,) integers: of their splits, by `clip.split_rank`.
  """
  count = len(digests)
  order = np.lexsort((ranks, digests[:, 1], digests[:, 0]))  # Stable: equal ones stay in their order.
  in_order = digests[order]
  starts_group = np.ones(count, bool)
  starts_group[1:] = (in_order[1:] != in_order[:-1]).any(axis=1)
  start = np.maximum.accumulate(np.where(starts_group, np.arange(count), 0))
  first = np.empty(count, np.int64)
  first[order] = order[start]
  return np.where(digests.any(axis=1), first, np.arange(count))


def as_duplicate(finding: Finding, of: Clip) -> Finding:
  """Returns the finding of a clip whose audio is that of another one, which stays."""
  return dataclasses.replace(finding, status='duplicate', flags=(), reason=f'same audio as {of.name} of {of.split}')


def missing(clip: Clip) -> Finding:
  """Returns the finding of a clip that has no audio."""
  return Finding(clip.name, 'missing', reason='there is no such file')


class Summary:
  """Counts of each split, by kind, and the first few names of each kind."""

  def __init__(self) -> None:
    self.counts: dict[str, collections.Counter[str]] = {}
    self.samples: collections.Counter[str] = collections.Counter()  # Of those that are kept.
    self.names: dict[str, list[str]] = {kind: [] for kind in (*_LEFT_OUT, *_FLAGS)}

  def add(self, split: str, finding: Finding) -> None:
    """Counts a clip."""
    kinds = (finding.status, *finding.flags)
    self.counts.setdefault(split, collections.Counter()).update(('clips', *kinds))
    if finding.status == 'ok':
      self.samples[split] += finding.samples
    for kind in kinds:
      if kind != 'ok' and len(self.names[kind]) < _NAMED:
        self.names[kind].append(finding.name)

  def audit(self) -> Audit:
    """Returns the counts of all splits together."""
    total = sum(self.counts.values(), collections.Counter())
    return Audit(**{field.name: total[field.name] for field in dataclasses.fields(Audit)})

  def table(self, sample_rate: int) -> rich.table.Table:
    """Returns the counts as a person wants to see them."""
    table = rich.table.Table(title='Audit', title_justify='left')
    table.add_column()
    splits = list(self.counts)
    for name in splits if len(splits) == 1 else (*splits, 'all'):
      table.add_column(name, justify='right')
    table.add_column('such as', overflow='fold')

    def add_row(title: str, values: Sequence[float], form: str, names: Sequence[str] = ()) -> None:
      totals = values if len(splits) == 1 else (*values, sum(values))
      table.add_row(title, *(format(value, form) for value in totals), rich.markup.escape('\n'.join(names)))

    counts = list(self.counts.values())
    add_row('asked for', [count['clips'] for count in counts], ',')
    add_row('in the dataset', [count['ok'] for count in counts], ',')
    add_row('hours', [self.samples[split] / sample_rate / 3_600 for split in splits], ',.2f')
    for title, kinds in (('left out', _LEFT_OUT), ('kept, but', _FLAGS)):
      if any(count[kind] for count in counts for kind in kinds):
        table.add_section()
      for kind in kinds:
        if any(count[kind] for count in counts):
          add_row(f'{title}: {kind}', [count[kind] for count in counts], ',', self.names[kind])
    return table


def write_csv(path: PathLike, findings: Iterable[tuple[Clip, Finding]], sample_rate: int) -> Summary:
  """Writes one row a clip and sums them up.

  Its columns are `COLUMNS`: `seconds` is the length of what was read, `clipped` the share of samples at full scale, and
  `file` where it was read.
  """
  summary = Summary()
  with write_atomically(path) as file:
    text = io.TextIOWrapper(file, encoding='utf-8', newline='')
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(COLUMNS)
    for clip, finding in findings:
      summary.add(clip.split, finding)
      known = finding.level is not None
      writer.writerow(
        (
          clip.name,
          clip.split,
          finding.status,
          ' '.join(finding.flags),
          finding.reason,
          f'{finding.samples / sample_rate:.3f}' if known else '',
          f'{finding.level:.1f}' if known else '',
          f'{finding.clipped:.5f}' if known else '',
          _file_of(clip),
        )
      )
    text.detach()  # Or it would close the file, which is not ours.
  return summary


def _file_of(clip: Clip) -> str:
  sound = clip.sound
  if sound is None:
    return ''
  if isinstance(sound, AudioFile):
    return place_of(sound)
  return f'{sound.file} record {sound.number}'


def check_missing(num_missing: int, clips: int, max_missing_fraction: float, listing: PathLike) -> None:
  """Refuses an input of which too much is missing.

  Raises:
    UserError: naming the counts and the remedy.
  """
  if num_missing > max_missing_fraction * clips:
    raise UserError(
      f'{num_missing} of {clips} clips are missing, a fraction of {num_missing / clips:.3f}, and '
      f'--max_missing_fraction is {max_missing_fraction:g}; {listing} names them: is the audio all there? Else raise '
      'the limit'
    )


def check(audit: Audit, max_bad_fraction: float, listing: PathLike) -> None:
  """Refuses an input with too many bad files. Duplicates are left out of datasets, but are not bad.

  Raises:
    UserError: more than `max_bad_fraction` of the files that were found are bad, or none is left.
  """
  counts = dataclasses.asdict(audit)
  bad = {kind: counts[kind] for kind in _BAD}
  total, found = sum(bad.values()), audit.clips - audit.missing
  if total > max_bad_fraction * found:
    kinds = ', '.join(f'{number} {kind}' for kind, number in bad.items() if number)
    raise UserError(
      f'{total} of {found} files are bad ({kinds}), a fraction of {total / found:.3f}, and '
      f'--max_bad_fraction is {max_bad_fraction:g}; {listing} names them: mend the input, or raise the limit'
    )
  if not audit.ok:
    raise UserError(f'not one of {audit.clips} clips is usable; {listing} says why')
