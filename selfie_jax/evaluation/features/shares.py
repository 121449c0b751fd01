"""Representations of all clips of a task: computed once, in shares, by all processes, and kept for the next time.

The clips are cut into shares of a fixed size, whatever the processes and devices; a share goes to the cache as soon as
it is computed. So a job that was killed goes on with the share it was at, and processes need no other way to each other
than the folder of the cache, which all of them see.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from selfie_jax.config import LogMel
from selfie_jax.embedding.clips import Units
from selfie_jax.embedding.embeddings import Representation, represent
from selfie_jax.evaluation.features.cache import ArrayCache
from selfie_jax.terminal import progress_bar
from selfie_jax.training.processes import cluster

# Of a share. On an accelerator a batch has thousands of clips, and what a share leaves of its last one is lost.
_CLIPS_CPU, _CLIPS_ACCELERATOR = 256, 2_048
# For the slowest process: the first one may train probes, or fine-tune, while the others wait for it.
PATIENCE_SECONDS = 7 * 24 * 3600.0
VERSION = 1  # Of what the computed values are: raise it with any change of them.


@dataclasses.dataclass(frozen=True)
class Keyed:
  """A representation, and what its values are a function of besides the clips."""

  represent: Representation
  facts: Mapping[str, Any]


def represent_all(
  units: Units,
  representations: Mapping[str, Keyed],
  config: LogMel,
  cache: ArrayCache,
  facts: Mapping[str, Any],
  *,
  min_samples: int,
  title: str,
) -> dict[str, np.ndarray] | None:
  """Represents every clip in each way. All processes must ask, in the same order.

  Args:
    units: the clips.
    representations: the ways, by name.
    config: the front-end.
    cache: what is there is not computed again.
    facts: what tells these clips, as they are cut here, from any others.
    min_samples: shorter clips are zero-padded to it.
    title: what the progress bar says.

  Returns:
    For each name (clips, features) float32, in the order of the files. None on all processes but the first.

  Raises:
    UserError: a clip cannot be read.
  """
  size = _CLIPS_CPU if jax.default_backend() == 'cpu' else _CLIPS_ACCELERATOR
  shares = np.split(np.arange(len(units.files)), range(size, len(units.files), size))
  common = {
    'version': VERSION,
    'platform': jax.default_backend(),  # Another one rounds otherwise.
    'log_mel': dataclasses.asdict(config),
    'min_samples': min_samples,
    'clips': dict(facts),
  }

  def key(name: str, share: np.ndarray) -> dict[str, Any]:
    return common | {'representation': dict(representations[name].facts), 'rows': [int(share[0]), int(share[-1])]}

  def complete(numbers: list[int], keep: bool) -> dict[tuple[str, int], np.ndarray]:
    """Sees to it that these shares are in the cache; returns them if they are to be kept in memory."""
    there: dict[tuple[str, int], np.ndarray] = {}
    missing: dict[int, list[str]] = {}
    for number, name in itertools.product(numbers, representations):
      found = cache.read(key(name, shares[number]))
      if found is None:
        missing.setdefault(number, []).append(name)
      elif keep:
        there[name, number] = found
    if not missing:
      return there
    # One stream of clips, so that the threads that decode them never wait for the end of a share.
    rows = np.concatenate([shares[number] for number in missing])
    done = sum(len(shares[number]) for number in numbers) - len(rows)
    with progress_bar(f'{title}: embeddings', done + len(rows), before=done) as show:
      clips = _counted(units.decode(rows), done, show)
      for number, names in missing.items():
        vectors = represent(
          itertools.islice(clips, len(shares[number])),
          [representations[name].represent for name in names],
          config,
          min_samples=min_samples,
          max_samples=units.samples,
        )
        for name, array in zip(names, vectors, strict=True):
          cache.write(key(name, shares[number]), array)
          if keep:
            there[name, number] = array
    return there

  first = jax.process_index() == 0
  everything = list(range(len(shares)))
  mine = everything[jax.process_index() :: jax.process_count()]
  there = complete(mine, keep=first)
  cluster.barrier('embeddings', PATIENCE_SECONDS)
  if not first:
    return None
  if jax.process_count() > 1:
    there |= complete([number for number in everything if number not in mine], keep=True)
  return {name: np.concatenate([there[name, number] for number in everything]) for name in representations}


def _counted(clips: Iterator[np.ndarray], done: int, show: Callable[[int], None]) -> Iterator[np.ndarray]:
  for clip in clips:
    show(done := done + 1)
    yield clip
