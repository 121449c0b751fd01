"""Splits and folds where nobody published any that we could use: always the same ones for the same names."""

import collections
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from selfie_jax.errors import UserError

_SPLITS = ('train', 'valid', 'test')


def split_by_hash(groups: Iterable[str], shares: tuple[int, int, int]) -> dict[str, str]:
  """Deals groups out to train, valid and test, as many as the shares say.

  Groups are ordered by the SHA-256 of their names: that order is the same on every machine and has nothing to do with
  what the names mean.

  Args:
    groups: their names; the same one may come often.
    shares: of train, valid and test. As many groups as the shares add up to are dealt out exactly as they say.
  """
  return _deal(sorted(set(groups), key=lambda name: hashlib.sha256(name.encode()).digest()), shares)


def split_as_tfds(groups: Iterable[str], shares: tuple[int, int, int]) -> dict[str, str]:
  """Deals groups out as TensorFlow Datasets does for crema_d 1.0.0: sorted, then shuffled by `RandomState(0)`.

  NumPy promises that this generator's numbers stay as they are.
  """
  order = sorted(set(groups))
  np.random.RandomState(0).shuffle(order)
  return _deal(order, shares)


def _deal(order: Sequence[str], shares: tuple[int, int, int]) -> dict[str, str]:
  total = sum(shares)
  ends = [len(order) * part // total for part in (shares[0], shares[0] + shares[1], total)]
  return {
    name: split for split, start, end in zip(_SPLITS, (0, *ends), ends, strict=False) for name in order[start:end]
  }


def make_folds(names: Sequence[str], labels: Sequence[str] | None, groups: Sequence[str], count: int) -> list[str]:
  """Returns each clip's fold, '1' to `count`, with as much of each label in each as can be.

  Args:
    names: of the clips. The folds do not depend on the order they come in.
    labels: one a clip; None for a multi-label task, whose clips are dealt out at random.
    groups: one a clip. Clips of one group are in one fold; '' is a group of its own.
    count: of folds.

  Raises:
    UserError: there are fewer groups than folds, or fewer clips of a label.
  """
  from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold  # Slow to import.

  order = sorted(range(len(names)), key=lambda i: names[i])
  keys = [f'group {groups[i]}' if groups[i] else f'file {names[i]}' for i in order]
  apart = len(set(keys)) < len(keys)
  if len(set(keys)) < count:
    raise UserError(f'--folds is {count}, and there are {len(set(keys))} {"groups" if apart else "clips"}: give fewer')
  if labels is None:
    splitter = GroupKFold(count, shuffle=True, random_state=0) if apart else KFold(count, shuffle=True, random_state=0)
    targets = None
  else:
    targets = [labels[i] for i in order]
    rarest, fewest = min(collections.Counter(targets).items(), key=lambda item: item[::-1])
    if fewest < count:
      raise UserError(f'--folds is {count}, and label "{rarest}" has {fewest} clips: give fewer')
    kind = StratifiedGroupKFold if apart else StratifiedKFold
    splitter = kind(count, shuffle=True, random_state=0)
  folds = [''] * len(names)
  for number, (_, test) in enumerate(splitter.split(np.zeros(len(order)), targets, keys if apart else None), 1):
    for place in test:
      folds[order[place]] = str(number)
  return folds
