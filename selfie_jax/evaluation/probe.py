"""A linear probe on frozen features: how much of a task is linearly readable from a representation.

The protocol is that of EVAR (the evaluation package of BYOL-A's authors) with its quirks mended: the loss is the plain
mean cross-entropy, and the scaler sees the train rows only. Features are standardised; one linear layer is trained by
Adam; training stops once `patience` epochs in a row were worse on the validation set than the best so far; the weights
of the best epoch are kept. The learning rate is chosen on the validation set, never on the test set.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from selfie_jax.config import Evaluation
from selfie_jax.evaluation.tasks.folder import Split

_Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class ProbeResult:
  """What the probes of one split found; a row a seed, in the order of `Evaluation.seeds`."""

  predictions: np.ndarray  # (seeds, test clips) class numbers.
  learning_rate: float  # The chosen one: best validation accuracy, averaged over the seeds; a tie goes to the first.
  valid_accuracy: np.ndarray  # (seeds,) at the best epoch.
  best_epoch: np.ndarray  # (seeds,) counted from 1.


def probe(features: np.ndarray, labels: np.ndarray, num_classes: int, split: Split, config: Evaluation) -> ProbeResult:
  """Trains probes on the split's train rows, all seeds and learning rates at once, and predicts its test rows.

  The result is a function of the arguments alone.

  Args:
    features: (n, d) float32, a row a clip.
    labels: (n,) class numbers in [0, num_classes).
    num_classes: outputs of the linear layer.
    split: which rows are train, valid and test.
    config: seeds, learning rates, batch size, epochs, patience and weight decay.
  """
  train, valid, test = standardize(features[split.train], features[split.valid], features[split.test])
  best, valid_accuracy, best_epoch = fit(
    train,
    labels[split.train].astype(np.int32),
    valid,
    labels[split.valid].astype(np.int32),
    np.asarray(config.seeds, np.uint32),
    np.asarray(config.learning_rates, np.float32),
    num_classes=num_classes,
    batch_size=min(config.batch_size, len(train)),
    epochs=config.epochs,
    patience=config.patience,
    weight_decay=config.weight_decay,
  )
  valid_accuracy, best_epoch = np.asarray(valid_accuracy), np.asarray(best_epoch)
  chosen = int(valid_accuracy.mean(0).argmax())
  weights = jax.tree.map(lambda x: x[:, chosen], best)
  predictions = jax.vmap(_logits, in_axes=(0, None))(weights, test).argmax(-1)
  return ProbeResult(
    np.asarray(predictions), config.learning_rates[chosen], valid_accuracy[:, chosen], best_epoch[:, chosen]
  )


def standardize(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
  """Returns `train` and `others` with each column scaled to mean 0 and variance 1 of `train` alone, as float32."""
  from sklearn.preprocessing import StandardScaler  # Slow to import. It also copes with constant columns (dead units).

  scaler = StandardScaler().fit(train)
  return [scaler.transform(rows).astype(np.float32) for rows in (train, *others)]


def init(seed: jax.Array, num_features: int, num_classes: int) -> _Params:
  """The linear layer before training: U(-1/sqrt(d), 1/sqrt(d)), PyTorch's default."""
  weight_key, bias_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 0))
  bound = num_features**-0.5
  return {
    'weight': jax.random.uniform(weight_key, (num_features, num_classes), minval=-bound, maxval=bound),
    'bias': jax.random.uniform(bias_key, (num_classes,), minval=-bound, maxval=bound),
  }


def epoch_order(seed: jax.Array, epoch: jax.Array, count: int) -> jax.Array:
  """The order in which epoch `epoch` (1 is the first) visits `count` train rows."""
  return jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), count)


@functools.partial(jax.jit, static_argnames=('num_classes', 'batch_size', 'epochs', 'patience', 'weight_decay'))
def fit(
  train_x: jax.Array,
  train_y: jax.Array,
  valid_x: jax.Array,
  valid_y: jax.Array,
  seeds: jax.Array,
  learning_rates: jax.Array,
  *,
  num_classes: int,
  batch_size: int,
  epochs: int,
  patience: int,
  weight_decay: float,
) -> tuple[_Params, jax.Array, jax.Array]:
  """Trains len(seeds) x len(learning_rates) probes as one program, until the last of them has stopped.

  Args:
    train_x: (n, d) standardised.
    train_y: (n,) class numbers.
    valid_x: (m, d) standardised.
    valid_y: (m,) class numbers.
    seeds: (s,) each decides the initial weights and the order of the batches.
    learning_rates: (l,).
    num_classes: outputs of the linear layer.
    batch_size: at most n; the last batch of an epoch may be smaller.
    epochs: at most so many.
    patience: epochs in a row without a validation accuracy at least as good as the best (a tie counts as better).
    weight_decay: L2 decay added to the gradient, as in PyTorch's Adam.

  Returns:
    The weights of each probe's best epoch (leading axes s, l), its validation accuracy and its number, both (s, l).
  """
  count, num_features = train_x.shape
  num_batches = -(-count // batch_size)

  def member_step(
    params: _Params, moments: optax.OptState, rate: jax.Array, x: jax.Array, y: jax.Array, counts: jax.Array
  ) -> tuple[_Params, optax.OptState]:
    gradients = jax.grad(_loss)(params, x, y, counts)
    updates, moments = _adam(rate, weight_decay).update(gradients, moments, params)
    return optax.apply_updates(params, updates), moments

  # A seed's learning rates share its batches: the inner map leaves x alone, so that a step is one wide product.
  over_rates = jax.vmap(member_step, in_axes=(0, 0, 0, None, None, None))
  step = jax.vmap(over_rates, in_axes=(0, 0, None, 0, 0, None))

  def epoch_step(carry: tuple) -> tuple:
    epoch, params, moments, best, best_accuracy, best_epoch = carry
    epoch += 1
    order = jax.vmap(epoch_order, in_axes=(0, None, None))(seeds, epoch, count)
    order = jnp.pad(order, ((0, 0), (0, num_batches * batch_size - count)))
    batches = order.reshape(len(seeds), num_batches, batch_size).transpose(1, 0, 2)
    counts = (jnp.arange(num_batches * batch_size) < count).reshape(num_batches, batch_size)

    def batch_step(carry: tuple, batch: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
      rows, counts = batch
      return step(*carry, learning_rates, train_x[rows], train_y[rows], counts), None

    (params, moments), _ = jax.lax.scan(batch_step, (params, moments), (batches, counts))
    predictions = jax.vmap(jax.vmap(_logits, in_axes=(0, None)), in_axes=(0, None))(params, valid_x).argmax(-1)
    accuracy = (predictions == valid_y).mean(-1)
    # A probe that has stopped goes through the motions until the last one stops, but is no longer listened to.
    better = (accuracy >= best_accuracy) & (epoch - best_epoch <= patience)
    best = jax.tree.map(lambda new, old: jnp.where(jnp.expand_dims(better, range(2, new.ndim)), new, old), params, best)
    best_accuracy = jnp.where(better, accuracy, best_accuracy)
    best_epoch = jnp.where(better, epoch, best_epoch)
    return epoch, params, moments, best, best_accuracy, best_epoch

  def goes_on(carry: tuple) -> jax.Array:
    epoch, best_epoch = carry[0], carry[-1]
    return (epoch < epochs) & (epoch - best_epoch < patience).any()

  grid = (len(seeds), len(learning_rates))
  params = jax.vmap(init, in_axes=(0, None, None))(seeds, num_features, num_classes)
  params = jax.tree.map(lambda x: jnp.repeat(x[:, None], len(learning_rates), 1), params)
  moments = jax.vmap(jax.vmap(_adam(0.0, weight_decay).init))(params)
  start = (jnp.int32(0), params, moments, params, jnp.full(grid, -1.0), jnp.zeros(grid, jnp.int32))
  _, _, _, best, best_accuracy, best_epoch = jax.lax.while_loop(goes_on, epoch_step, start)
  return best, best_accuracy, best_epoch


def _adam(learning_rate: jax.typing.ArrayLike, weight_decay: float) -> optax.GradientTransformation:
  return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate))


def _logits(params: _Params, x: jax.Array) -> jax.Array:
  # HIGHEST: a TPU would otherwise multiply in bfloat16, and a probe's accuracy depend on the machine.
  return jnp.matmul(x, params['weight'], precision=jax.lax.Precision.HIGHEST) + params['bias']


def _loss(params: _Params, x: jax.Array, y: jax.Array, counts: jax.Array) -> jax.Array:
  """Mean cross-entropy over the rows that count; the others fill up the last batch of an epoch."""
  losses = optax.softmax_cross_entropy_with_integer_labels(_logits(params, x), y)
  return (losses * counts).sum() / counts.sum()
