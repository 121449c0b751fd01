"""Which checkpoints stay: the newest, some for ever, and the best that an evaluation job has found."""

import math
from collections.abc import Sequence

from etils import epath
from orbax.checkpoint import checkpoint_managers

from selfie_jax.config import Checkpoint
from selfie_jax.terminal import console
from selfie_jax.training.monitoring.lines import parse_lines

_SCORES = 'eval/scores.jsonl'  # One object a checkpoint, by the evaluation job.


def make_policy(workdir: epath.Path, settings: Checkpoint) -> checkpoint_managers.PreservationPolicy:
  """Returns the rule by which Orbax deletes checkpoints. It asks at each save, the new checkpoint counted."""
  policies = [checkpoint_managers.LatestN(settings.keep)]
  if settings.keep_every:
    policies.append(checkpoint_managers.EveryNSteps(settings.keep_every))
  if settings.keep_best:
    policies.append(_Best(workdir / _SCORES, settings.keep_best))
  return checkpoint_managers.AnyPreservationPolicy(policies)


class _Best:
  """Keeps the `count` best of the checkpoints that are there, by the scores known at that moment.

  Orbax's own policy of this kind wants the scores when it saves; here another job finds them, later.
  """

  def __init__(self, scores: epath.Path, count: int) -> None:
    self._scores = scores
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
      scores = read_scores(self._scores)
    except Exception as error:  # Each store has its own. What cannot be read now may name any of them.
      console.print(f'cannot read {self._scores} ({type(error).__name__}: {error}): no checkpoint is deleted now')
      return [True] * len(checkpoints)
    scored = [checkpoint.step for checkpoint in checkpoints if checkpoint.step in scores]
    best = set(sorted(scored, key=lambda step: (scores[step], step))[-self._count :])
    return [checkpoint.step in best for checkpoint in checkpoints]


def read_scores(path: epath.Path) -> dict[int, float]:
  """Returns the mean accuracy of each checkpoint that has been evaluated, {} if none has. Broken lines do not count."""
  lines = parse_lines(path.read_bytes()) if path.exists() else ()
  scores = {line['step']: line.get('mean_accuracy') for _, line in lines}
  return {step: score for step, score in scores.items() if isinstance(score, (int, float)) and not math.isnan(score)}
