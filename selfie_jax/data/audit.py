"""What is good enough for a dataset, and the list of what is not."""

import csv
import dataclasses
import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from selfie_jax.data.dataset import Audit
from selfie_jax.data.decode import DecodeError, EmptyError, decode
from selfie_jax.errors import UserError
from selfie_jax.files import write_atomically


@dataclasses.dataclass(frozen=True)
class Finding:
  """What became of a file: `status` is one of the counts of `Audit`, `reason` says more."""

  name: str
  status: str
  reason: str = ''
  samples: int = 0
  sha256: str = ''  # Of the decoded audio.


def examine(
  path: Path, name: str, sample_rate: int, min_seconds: float, silence_dbfs: float
) -> tuple[Finding, np.ndarray | None]:
  """Decodes the file `path` and judges it.

  Returns:
    What was found, under `name`; and the audio, (samples,) int16, if it is to be kept.
  """
  try:
    audio = decode(path, sample_rate)
  except EmptyError as error:
    return Finding(name, 'empty', error.reason), None
  except DecodeError as error:
    return Finding(name, 'unreadable', error.reason), None
  seconds = len(audio) / sample_rate
  if seconds < min_seconds:
    return Finding(name, 'too_short', f'{seconds:.3f} s, under {min_seconds:g} s'), None
  level = loudness(audio)
  if level < silence_dbfs:
    return Finding(name, 'silent', f'{level:.1f} dBFS, under {silence_dbfs:g} dBFS'), None
  return Finding(name, 'ok', samples=len(audio), sha256=hashlib.sha256(audio.astype('<i2')).hexdigest()), audio


def loudness(audio: np.ndarray) -> float:
  """RMS around the mean (a constant offset is no sound) in dB, 0 being that of a full-scale square wave.

  Args:
    audio: (samples,) int16, not empty.
  """
  with np.errstate(divide='ignore'):
    return float(20 * np.log10(np.std(audio, dtype=np.float64) / 32_768))


def mark_duplicates(findings: Iterable[Finding]) -> list[Finding]:
  """Marks each clip whose decoded audio was there before, under another name; the first one stays."""
  first: dict[str, str] = {}
  marked = []
  for finding in findings:
    if finding.status == 'ok' and (name := first.setdefault(finding.sha256, finding.name)) != finding.name:
      finding = dataclasses.replace(finding, status='duplicate', reason=f'same audio as {name}')
    marked.append(finding)
  return marked


def count(findings: Sequence[Finding]) -> Audit:
  """Counts the files of each status."""
  statuses = [finding.status for finding in findings]
  kinds = [field.name for field in dataclasses.fields(Audit) if field.name != 'files']
  return Audit(files=len(statuses), **{kind: statuses.count(kind) for kind in kinds})


def write_csv(path: Path, findings: Sequence[Finding]) -> None:
  """Writes one row a file: file_name, status, reason."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(('file_name', 'status', 'reason'))
  writer.writerows((finding.name, finding.status, finding.reason) for finding in findings)
  with write_atomically(path) as file:
    file.write(text.getvalue().encode())


def check(audit: Audit, max_bad_fraction: float, listing: Path) -> None:
  """Refuses an input with too many bad files. Duplicates are left out of datasets, but are not bad.

  Raises:
    UserError: more than `max_bad_fraction` of the files are bad, or none is left.
  """
  counts = dataclasses.asdict(audit)
  bad = {kind: counts[kind] for kind in ('unreadable', 'empty', 'too_short', 'silent')}
  total = sum(bad.values())
  if total > max_bad_fraction * audit.files:
    kinds = ', '.join(f'{number} {kind}' for kind, number in bad.items() if number)
    raise UserError(
      f'{total} of {audit.files} files are bad ({kinds}), a fraction of {total / audit.files:.3f}, and '
      f'--max_bad_fraction is {max_bad_fraction:g}; {listing} names them: mend the input, or raise the limit'
    )
  if not audit.ok:
    raise UserError(f'not one of {audit.files} files is usable; {listing} says why')
