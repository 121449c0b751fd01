"""Cutting clips into train, valid and test, so that clips of one group stay together: everywhere the same."""

import collections
import hashlib
from collections.abc import Sequence

from tests.study.public_data.folders import Row

_VALID, _TEST = 0.15, 0.25  # Shares.


def digest(key: str, salt: str = '') -> str:
  """Returns what orders keys at random, and always alike."""
  return hashlib.sha1((f'{salt}:{key}' if salt else key).encode()).hexdigest()


def split_of(key: str, salt: str = 'v1', valid: float = _VALID, test: float = _TEST) -> str:
  """Returns the split of a group of clips, by its name alone.

  Args:
    key: the group's name.
    salt: another one deals the groups out anew.
    valid: share of the groups, about.
    test: share of the groups, about.
  """
  position = int(digest(key, salt)[:8], 16) / 0xFFFFFFFF
  if position < test:
    return 'test'
  return 'valid' if position < test + valid else 'train'


def split_labels(rows: Sequence[Row], group_column: str, salt: str) -> list[Row]:
  """Returns the rows with splits, such that each label's clips have their share of each, by whole groups.

  Of each label, groups in random order fill test, then valid, then train; one that would overfill its split by more
  than half of itself goes to the next.

  Args:
    rows: of a table with a column `label`.
    group_column: the column of the groups.
    salt: another one deals the groups out anew.
  """
  groups: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  for row in rows:
    groups[str(row['label'])][str(row[group_column])] += 1
  split = {(label, group): part for label in groups for group, part in _deal(groups[label], salt).items()}
  return [row | {'split': split[str(row['label']), str(row[group_column])]} for row in rows]


def _deal(sizes: collections.Counter[str], salt: str) -> dict[str, str]:
  """Returns each group's split, from the groups' numbers of clips."""
  total = sizes.total()
  filled = {'test': 0, 'valid': 0}
  shares = {'test': _TEST, 'valid': _VALID}
  splits = {}
  for group in sorted(sizes, key=lambda group: digest(group, salt)):
    room = (part for part in filled if filled[part] + sizes[group] / 2 <= shares[part] * total)
    splits[group] = next(room, 'train')
    if splits[group] in filled:
      filled[splits[group]] += sizes[group]
  return splits
