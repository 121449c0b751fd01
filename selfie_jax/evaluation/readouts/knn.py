"""The k nearest neighbours: how much of a task can be read from a representation without any training.

The protocol is that of instance discrimination (Wu et al., 2018, section 3.4) and DINO: the neighbours are the train
rows of the greatest cosine similarity s, features as they are (to standardise them was no better, measured on eight
tasks), and a neighbour's vote has the weight exp(s / 0.07). The class with the largest share of the votes is predicted;
of a multi-label task the shares are the scores, where a neighbour votes for each of its labels. k is chosen on the
validation set.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from selfie_jax.evaluation.readouts import metrics
from selfie_jax.evaluation.readouts.prediction import Prediction
from selfie_jax.evaluation.readouts.rows import cut_rows
from selfie_jax.evaluation.tasks.folder import Split

NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100)
_TEMPERATURE = 0.07
_QUERIES = 512  # Compared at once
_KEYS = 4_096  # with so many train rows.


def nearest_neighbours(features: np.ndarray, labels: np.ndarray, splits: Sequence[Split]) -> list[Prediction]:
  """Predicts each split's test rows from the labels of the train rows that are most like them.

  Args:
    features: (n, d) float32, a row a clip.
    labels: (n,) class numbers from 0, or of a multi-label task (n, classes) bool.
    splits: one, or one a fold. k is the one of `NEIGHBOURS` with the best validation score; a tie goes to the first.

  Returns:
    For each split (1, test clips) class numbers, or (1, test clips, classes) scores.
  """
  num_classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
  directions = _directions(jax.device_put(features))
  predictions = []
  for split in splits:
    choices = [k for k in NEIGHBOURS if k <= len(split.train)]
    nearest = functools.partial(_nearest, directions, split.train, choices[-1])
    valid = nearest(split.valid)
    valid_scores = [metrics.valid_score(shares(*valid, labels, num_classes, k), labels[split.valid]) for k in choices]
    k = choices[int(np.argmax(valid_scores))]
    found = shares(*nearest(split.test), labels, num_classes, k)
    found = found if labels.ndim == 2 else found.argmax(-1)
    predictions.append(Prediction(found[None], {'neighbours': k, 'valid_score': max(valid_scores)}))
  return predictions


def shares(similarities: np.ndarray, rows: np.ndarray, labels: np.ndarray, num_classes: int, k: int) -> np.ndarray:
  """Returns each class's share of the votes, (queries, classes).

  Args:
    similarities: (queries, neighbours) cosines of the nearest, the nearest first.
    rows: (queries, neighbours) which rows they are.
    labels: of all rows, as in `nearest_neighbours`.
    num_classes: of which there are labels.
    k: how many vote.
  """
  weights = np.exp(similarities[:, :k] / _TEMPERATURE)
  weights /= weights.sum(1, keepdims=True)
  if labels.ndim == 2:
    votes = np.zeros((len(rows), num_classes))
    for rank in range(k):  # All ranks at once would be (queries, k, classes).
      votes += weights[:, rank, None] * labels[rows[:, rank]]
    return votes
  places = np.arange(len(rows))[:, None] * num_classes + labels[rows[:, :k]]
  return np.bincount(places.ravel(), weights.ravel(), len(rows) * num_classes).reshape(len(rows), num_classes)


@functools.partial(jax.jit, donate_argnums=0)
def _directions(features: jax.Array) -> jax.Array:
  return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def _nearest(
  directions: jax.Array, train: np.ndarray, count: int, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the similarities and the numbers of the `count` train rows nearest to each query, (queries, count)."""
  keys, parts = cut_rows([train], _KEYS), cut_rows([queries], _QUERIES)
  similarities, rows = _search(directions, keys.numbers[0], keys.count[0], parts.numbers[0], count=count)
  return np.asarray(similarities)[: len(queries)].astype(np.float64), np.asarray(rows)[: len(queries)]


@functools.partial(jax.jit, static_argnames='count')
def _search(
  directions: jax.Array, keys: jax.Array, num_keys: jax.Array, queries: jax.Array, *, count: int
) -> tuple[jax.Array, jax.Array]:
  """Goes over the keys part by part and keeps the best so far, so that memory holds neither a copy nor all pairs."""
  real = (jnp.arange(keys.size) < num_keys).reshape(keys.shape)

  def of_queries(queries: jax.Array) -> tuple[jax.Array, jax.Array]:
    def look(best: tuple[jax.Array, jax.Array], part: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
      rows, real = part
      # HIGHEST: a TPU would otherwise multiply in bfloat16, and the neighbours depend on the machine.
      found = jnp.matmul(directions[queries], directions[rows].T, precision=jax.lax.Precision.HIGHEST)
      found = jnp.concatenate([best[0], jnp.where(real, found, -jnp.inf)], axis=1)
      rows = jnp.concatenate([best[1], jnp.broadcast_to(rows, (len(queries), len(rows)))], axis=1)
      found, places = jax.lax.top_k(found, count)  # Of equal ones, the first.
      return (found, jnp.take_along_axis(rows, places, axis=1)), None

    none = jnp.full((len(queries), count), -jnp.inf), jnp.zeros((len(queries), count), keys.dtype)
    return jax.lax.scan(look, none, (keys, real))[0]

  similarities, rows = jax.lax.map(of_queries, queries)
  return similarities.reshape(queries.size, count), rows.reshape(queries.size, count)
