"""Which checkpoints stay: the newest, some for ever, and the best that an evaluation job has found."""

import math
from collections.abc import Sequence

from etils import epath
from orbax.checkpoint import checkpoint_managers

from selfie_jax.config import Checkpoint
from selfie_jax.terminal import console
from selfie_jax.training.monitoring.lines import SCORES, read_scores


def make_policy(workdir: epath.Path, settings: Checkpoint) -> checkpoint_managers.PreservationPolicy:
  """Returns the rule by which Orbax deletes checkpoints. It asks at each save, the new checkpoint counted."""
  policies = [checkpoint_managers.LatestN(settings.keep)]
  if settings.keep_every:
    policies.append(checkpoint_managers.EveryNSteps(settings.keep_every))
  if settings.keep_best:
    policies.append(_Best(workdir, settings.keep_best))
  return checkpoint_managers.AnyPreservationPolicy(policies)


class _Best:
  """Keeps the `count` best of the checkpoints that are there, by the scores known at that moment.

  Orbax's own policy of this kind wants the scores when it saves; here another job finds them, later.
  """

  def __init__(self, workdir: epath.Path, count: int) -> None:
    self._workdir = workdir
    self._count = count

  def should_preserve(
    self,
    checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
    *,
    context: checkpoint_managers.PreservationContext,
  ) -> Sequence[bool]:
    """Says of each checkpoint whether it stays."""
    del context
    try:
      scores = mean_scores(self._workdir)
    except Exception as error:  # Each store has its own. What cannot be read now may name any of them.
      console.print(
        f'cannot read {self._workdir / SCORES} ({type(error).__name__}: {error}): no checkpoint is deleted now'
      )
      return [True] * len(checkpoints)
    scored = [checkpoint.step for checkpoint in checkpoints if checkpoint.step in scores]
    best = set(sorted(scored, key=lambda step: (scores[step], step))[-self._count :])
    return [checkpoint.step in best for checkpoint in checkpoints]


def mean_scores(workdir: epath.Path) -> dict[int, float]:
  """Returns the mean score of each checkpoint that has been evaluated, {} if none has."""
  scores = {step: line.get('mean_score') for step, line in read_scores(workdir).items()}
  return {step: score for step, score in scores.items() if isinstance(score, (int, float)) and not math.isnan(score)}
