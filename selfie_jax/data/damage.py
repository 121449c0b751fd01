"""What becomes of damaged records under `data.on_damage`: none is ever used, and with 'skip' they are counted."""

import sys
import threading

from selfie_jax.data.tfrecord import DamagedRecordError
from selfie_jax.errors import UserError

_NAMED = 3


class DamageLog:
  """The damaged records that this process has met, each counted and printed once; safe to use from several threads."""

  def __init__(self, on_damage: str, max_damaged: int) -> None:
    self._skip = on_damage == 'skip'
    self._max = max_damaged
    self._found: dict[int, str] = {}
    self._lock = threading.Lock()

  def add(self, clip: int, error: DamagedRecordError) -> None:
    """Takes note of a damaged clip, which then is to be replaced.

    Raises:
      UserError: it must not be: nothing is skipped, or there are too many.
    """
    if not self._skip:
      raise error
    with self._lock:
      if clip not in self._found:
        self._found[clip] = str(error)
        # Not on the console, which is quiet on all hosts but the first: this one alone may have met the record.
        print(f'skipped, {len(self._found)} of at most {self._max}: {error}', file=sys.stderr, flush=True)
      if len(self._found) > self._max:
        first = '; '.join(list(self._found.values())[:_NAMED])
        raise UserError(
          f'{len(self._found)} damaged records, data.max_damaged={self._max}: look at the dataset with '
          f'python -m selfie_jax.prepare verify; the first ones: {first}'
        )
