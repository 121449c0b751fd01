"""Linear layers trained side by side in one program, on one copy of the features.

A member of the program is a fold with a seed. It trains all candidates (a learning rate with a weight decay) on the
same batches; some of them are a group, whose step is one wide product until the last of them has stopped. Folds differ
in size: their row lists are filled up to one length, and what fills them up counts nowhere.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from selfie_jax.evaluation.readouts.rows import Rows

_Params = dict[str, jax.Array]  # 'weight' (candidates, classes, features) and 'bias' (candidates, classes).
# Candidates of one product on a CPU: fewer are too thin, with more, too many that have stopped go on beside one that
# has not.
_GROUP = 2


class Members(NamedTuple):
  """What is trained side by side; a row a member."""

  seeds: np.ndarray  # (members,) each decides the initial weights and the order of the batches.
  mean: np.ndarray  # (members, features) subtracted from the features,
  scale: np.ndarray  # (members, features) which are then multiplied by this.
  train: Rows  # Not cut.
  valid: Rows  # A part is what is predicted at once.


class Candidates(NamedTuple):
  """What each member is trained with; a row a candidate."""

  learning_rate: np.ndarray  # (candidates,)
  weight_decay: np.ndarray  # (candidates,) L2 decay added to the gradient, as in PyTorch's Adam.


class Settings(NamedTuple):
  """How each member is trained. None of it is a part of the compiled program."""

  epochs: int  # At most so many.
  patience: int  # Epochs in a row without a validation score at least as good as the best (a tie counts as better).
  loss_divisor: int = 1


class _Progress(NamedTuple):
  """Of one member; the axis of the candidates is cut into (groups, candidates of a group)."""

  params: _Params
  moments: optax.OptState
  best: _Params
  best_score: jax.Array  # (candidates,)
  best_epoch: jax.Array  # (candidates,) counted from 1.


@functools.partial(jax.jit, static_argnames=('batch_size', 'num_classes', 'side_by_side'))
def fit(
  features: jax.Array,
  labels: jax.Array,
  members: Members,
  candidates: Candidates,
  settings: Settings,
  *,
  batch_size: int,
  num_classes: int,
  side_by_side: bool,
) -> tuple[_Params, jax.Array, jax.Array]:
  """Trains every member with every candidate, until the last one has stopped.

  Args:
    features: (n, d).
    labels: (n,) int32, or of a multi-label task (n, classes) bool.
    members: m of them.
    candidates: c of them.
    settings: the same for all.
    batch_size: train rows of a step; the last batch of an epoch is what is left over.
    num_classes: outputs of a layer.
    side_by_side: members are trained all at once, which an accelerator needs to be busy. Otherwise one after the other:
      on a CPU the weights and moments of one stay in its cache, and nobody waits for the last member.

  Returns:
    The weights of the best epoch (members first), its validation score and its number, both (members,
    candidates).
  """
  optimizer = optax.scale_by_adam()
  width = len(candidates.learning_rate)
  # Those with similar learning rates stop at about the same time; the last group is filled up with the last of all.
  by_rate = jnp.argsort(candidates.learning_rate)
  size = width if side_by_side else min(width, _GROUP)
  groups = -(-width // size)
  grouped = by_rate[jnp.minimum(jnp.arange(groups * size), width - 1)].reshape(groups, size)
  candidates = jax.tree.map(lambda x: x[grouped], candidates)

  def ungroup(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])

  def begin(member: Members) -> _Progress:
    params = init(member.seeds, features.shape[1], num_classes)
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (groups, size, *x.shape)), params)
    scores, epochs = jnp.full((groups, size), -1.0), jnp.zeros((groups, size), jnp.int32)
    return _Progress(params, jax.vmap(optimizer.init)(params), params, scores, epochs)

  def train_batch(
    member: Members, going: jax.Array, layers: tuple, batch: tuple[jax.Array, jax.Array]
  ) -> tuple[tuple, None]:
    rows, counts = batch
    x, y = _standardized(features, member, rows), labels[rows]
    # Floats, and not counts within the loss: in the gradient of that, XLA of jaxlib 0.10.2 is wrong on a CPU.
    weights = counts.astype(jnp.float32) / (jnp.maximum(counts.sum(), 1) * settings.loss_divisor)

    def step(candidates: Candidates, params: _Params, moments: optax.OptState) -> tuple[_Params, optax.OptState]:
      gradients = jax.grad(_loss)(params, x, y, weights)
      gradients = jax.tree.map(lambda g, x: g + _each(candidates.weight_decay, x) * x, gradients, params)
      updates, moments = optimizer.update(gradients, moments)
      return jax.tree.map(lambda x, u: x - _each(candidates.learning_rate, x) * u, params, updates), moments

    # A batch of filling would still move the weights, by its momentum.
    def of_group(group: tuple) -> tuple:
      going, candidates, *layers = group
      return jax.lax.cond(going, step, lambda _, *layers: tuple(layers), candidates, *layers)

    return jax.lax.map(of_group, (going & counts.any(), candidates, *layers)), None

  def train_epoch(member: Members, epoch: jax.Array, progress: _Progress) -> _Progress:
    numbers, count = member.train
    order = epoch_order(member.seeds, epoch, numbers.size, count)
    rows, real = numbers[order], jnp.arange(numbers.size) < count
    whole = numbers.size // batch_size * batch_size
    heard = epoch - progress.best_epoch <= settings.patience
    step = functools.partial(train_batch, member, heard.any(1))
    carry = progress.params, progress.moments
    if whole:
      carry, _ = jax.lax.scan(step, carry, tuple(x[:whole].reshape(-1, batch_size) for x in (rows, real)))
    if whole < numbers.size:
      carry, _ = step(carry, (rows[whole:], real[whole:]))
    params, moments = carry
    score = _valid_score(features, labels, member, jax.tree.map(ungroup, params)).reshape(groups, size)
    # A candidate that has stopped goes on until the last of its group stops, but is no longer listened to.
    better = (score >= progress.best_score) & heard
    best = jax.tree.map(lambda new, old: jnp.where(_each(better, new), new, old), params, progress.best)
    best_score = jnp.where(better, score, progress.best_score)
    return _Progress(params, moments, best, best_score, jnp.where(better, epoch, progress.best_epoch))

  def train(member: Members) -> tuple[_Params, jax.Array, jax.Array]:
    def go_on(carry: tuple[jax.Array, _Progress]) -> jax.Array:
      epoch, progress = carry
      return (epoch < settings.epochs) & (epoch - progress.best_epoch < settings.patience).any()

    def next_epoch(carry: tuple[jax.Array, _Progress]) -> tuple[jax.Array, _Progress]:
      epoch, progress = carry
      return epoch + 1, train_epoch(member, epoch + 1, progress)

    _, progress = jax.lax.while_loop(go_on, next_epoch, (jnp.int32(0), begin(member)))
    rank = jnp.argsort(by_rate)
    found = progress.best, progress.best_score, progress.best_epoch
    return jax.tree.map(lambda x: ungroup(x)[rank], found)

  return jax.vmap(train)(members) if side_by_side else jax.lax.map(train, members)


@functools.partial(jax.jit, static_argnames='return_logits')
def predict(
  features: jax.Array, params: _Params, members: Members, rows: Rows, chosen: jax.Array, *, return_logits: bool
) -> jax.Array:
  """Predicts rows with one candidate of each member.

  Args:
    features: (n, d).
    params: as `fit` returns them.
    members: those of `fit`.
    rows: a list a member.
    chosen: (members,) which candidate.
    return_logits: or class numbers.

  Returns:
    (members, padded rows) class numbers, or (members, padded rows, classes) logits.
  """

  def of_member(member: Members, params: _Params, rows: Rows, chosen: jax.Array) -> jax.Array:
    params = jax.tree.map(lambda x: x[chosen][None], params)

    def of_part(numbers: jax.Array) -> jax.Array:
      logits = _logits(params, _standardized(features, member, numbers))[0].T
      return logits if return_logits else logits.argmax(-1)

    found = jax.lax.map(of_part, rows.numbers)
    return found.reshape(rows.numbers.size, *found.shape[2:])

  return jax.vmap(of_member)(members, params, rows, chosen)


def init(seed: jax.Array, num_features: int, num_classes: int) -> _Params:
  """The linear layer before training, weight (classes, d): U(-1/sqrt(d), 1/sqrt(d)), PyTorch's default."""
  bound = num_features**-0.5
  key = jax.random.fold_in(jax.random.key(seed), 0)
  # One draw for both: the generator is what takes longest to compile.
  layer = jax.random.uniform(key, (num_features + 1, num_classes), minval=-bound, maxval=bound)
  return {'weight': layer[:-1].T, 'bias': layer[-1]}


def epoch_order(seed: jax.Array, epoch: jax.Array, length: int, count: jax.Array) -> jax.Array:
  """The order in which epoch `epoch` (1 is the first) visits positions 0 ... `count` - 1; the rest of `length` follow.

  A position's random number does not depend on `length`: a fold meets the same batches whatever the other folds are.
  """
  key = jax.random.fold_in(jax.random.key(seed), epoch)
  positions = jnp.arange(length)
  numbers = jax.vmap(lambda position: jax.random.bits(jax.random.fold_in(key, position)))(positions)
  # The sort is stable: filling stays behind a real position that drew the greatest number, too.
  return _stable_argsort(jnp.where(positions < count, numbers, jnp.uint32(2**32 - 1)))


def _stable_argsort(numbers: jax.Array) -> jax.Array:
  """`jnp.argsort` of (n,) uint32: on a CPU in a third of its time, as XLA sorts one array far faster than two.

  A radix sort of two digits of 16 bits, the lower one first. A digit and the place of its number are one sort key, so
  that equal digits keep their order; the place needs the other 16 bits.
  """
  if len(numbers) > 2**16:
    return jnp.argsort(numbers)
  place = jnp.arange(len(numbers), dtype=jnp.uint32)
  by_low = jnp.sort(numbers << 16 | place) & 0xFFFF
  by_high = jnp.sort(numbers[by_low] >> 16 << 16 | place) & 0xFFFF
  return by_low[by_high].astype(jnp.int32)


def mean_average_precision(scores: jax.Array, positives: jax.Array, counts: jax.Array) -> jax.Array:
  """Mean over the classes that have a positive of the average precision, as scikit-learn's `average_precision_score`.

  AP = sum of (R_k - R_{k-1}) P_k over the distinct scores, from the highest: rows of one score are one threshold, so
  that ties cannot be in a lucky order.

  Args:
    scores: (rows, ..., classes).
    positives: (rows, classes) bool.
    counts: (rows,) which rows are real.

  Returns:
    (...); 0 if no class has a positive.
  """
  positives = positives & counts[:, None]
  precision = jax.vmap(_average_precision, in_axes=(-1, -1, None), out_axes=-1)
  for _ in range(scores.ndim - 2):
    precision = jax.vmap(precision, in_axes=(1, None, None))
  present = positives.any(0)
  return jnp.where(present, precision(scores, positives, counts), 0).sum(-1) / jnp.maximum(present.sum(), 1)


def _average_precision(scores: jax.Array, positives: jax.Array, counts: jax.Array) -> jax.Array:
  """Of one class; all (rows,)."""
  scores = jnp.where(counts, scores, -jnp.inf)  # Filling comes last, and has no positive.
  order = jnp.argsort(-scores)
  scores, hits = scores[order], positives[order]
  last = jnp.append(scores[1:] != scores[:-1], True)
  rank = jnp.arange(len(scores))
  end = jax.lax.cummin(jnp.where(last, rank, len(scores) - 1), reverse=True)  # Of the row's group of equal scores.
  precision = (jnp.cumsum(hits) / (rank + 1))[end]
  return (precision * hits).sum() / jnp.maximum(hits.sum(), 1)


def _standardized(features: jax.Array, member: Members, rows: jax.Array) -> jax.Array:
  return (features[rows] - member.mean) * member.scale


def _logits(params: _Params, x: jax.Array) -> jax.Array:
  """(candidates, classes, rows): so that what is done to each row is done to many at once."""
  # HIGHEST: a TPU would otherwise multiply in bfloat16, and a probe's accuracy depend on the machine.
  # The features come last in the weights: on a CPU both products of a step, and Adam, are faster than the other way.
  weight = params['weight'].reshape(-1, x.shape[-1])
  logits = jnp.matmul(weight, x.T, precision=jax.lax.Precision.HIGHEST)
  return logits.reshape(*params['bias'].shape, len(x)) + params['bias'][..., None]


def _each(values: jax.Array, like: jax.Array) -> jax.Array:
  """`values`, with axes at the end to spread over those of `like`."""
  return values.reshape(*values.shape, *[1] * (like.ndim - values.ndim))


def _loss(params: _Params, x: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
  """Sum over the candidates, none of which is in another's gradient, of the weighted sum over the rows.

  A row's loss is its cross-entropy, or the sum over the classes of each one's binary cross-entropy.
  """
  logits = _logits(params, x)
  if labels.ndim == 2:
    losses = optax.sigmoid_binary_cross_entropy(logits, labels.T).sum(1)
  else:
    losses = optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[1], axis=0)[None], axis=1)
  return (losses * weights).sum()


def _valid_score(features: jax.Array, labels: jax.Array, member: Members, params: _Params) -> jax.Array:
  """Accuracy, or mean average precision, of each candidate."""
  numbers, count = member.valid
  counts = (jnp.arange(numbers.size) < count).reshape(numbers.shape)
  if labels.ndim == 1:

    def hits(part: tuple[jax.Array, jax.Array]) -> jax.Array:
      rows, counts = part
      found = _logits(params, _standardized(features, member, rows)).argmax(1)
      return ((found == labels[rows]) & counts).sum(-1)

    return jax.lax.map(hits, (numbers, counts)).sum(0) / count
  logits = jax.lax.map(lambda rows: _logits(params, _standardized(features, member, rows)), numbers)
  logits = logits.transpose(0, 3, 1, 2).reshape(numbers.size, *params['bias'].shape)
  return mean_average_precision(logits, labels[numbers.reshape(-1)], counts.reshape(-1))
