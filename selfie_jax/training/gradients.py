"""The gradient of a loss on ALL embeddings of a batch, with the networks' activations of a part of it at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (parameters, batch statistics, inputs) -> (embeddings, new batch statistics). The leading axis of every array in
# inputs and embeddings is the batch.
Embed = Callable[[Any, Any, Any], tuple[Any, Any]]


def embedding_gradients(
  embed: Embed, loss_fn: Callable[[Any], Any], params: Any, batch_stats: Any, inputs: Any, microbatches: int
) -> tuple[Any, Any, Any]:
  """Returns a loss of the whole batch's embeddings, with its gradient for the parameters.

  With several microbatches this is gradient caching (Gao et al., "Scaling Deep Contrastive Learning Batch Size under
  Memory Limited Setup", 2021): embed the batch chunk by chunk and keep the embeddings alone; take the loss and its
  gradient on all of them; embed each chunk again and carry that gradient on to the parameters. The loss, and every
  statistic in it, is that of the full batch, and activations take 1 / microbatches of the memory for one more forward
  pass.

  Batch normalisation is the exception. It normalises each chunk by the chunk's own statistics (over all devices),
  because those of the whole batch would take one pass over all chunks for every normalisation layer, forwards and
  backwards. Its running averages see every chunk once, one after the other. So the result is that of one chunk where
  batch normalisation is absent, and close to it elsewhere, as far as n / microbatches examples tell what n do.

  Args:
    embed: must draw random numbers from keys in its inputs, an example's from its own, and nothing else.
    loss_fn: embeddings -> (loss, metrics).
    params: what to differentiate for.
    batch_stats: passed through `embed`.
    inputs: a tree of arrays whose leading axis is the batch.
    microbatches: number of chunks; it divides the part of the batch that a device holds.

  Returns:
    ((loss, metrics), gradients of the parameters, new batch statistics).
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  if microbatches == 1:
    embeddings, backward, batch_stats = jax.vjp(lambda p: embed(p, batch_stats, inputs), params, has_aux=True)
    result, cotangents = grad_fn(embeddings)
    return result, backward(cotangents)[0], batch_stats

  def forward_chunk(batch_stats: Any, chunk: Any) -> tuple[Any, Any]:
    embeddings, batch_stats = embed(params, batch_stats, chunk)
    return batch_stats, embeddings

  def backward_chunk(gradients: Any, chunk_and_cotangents: tuple[Any, Any]) -> tuple[Any, None]:
    chunk, cotangents = chunk_and_cotangents
    # The statistics' new running averages are dropped: the forward pass has them.
    backward = jax.vjp(lambda p: embed(p, batch_stats, chunk)[0], params)[1]
    return jax.tree.map(jnp.add, gradients, backward(cotangents)[0]), None

  chunks = split(inputs, microbatches)
  new_batch_stats, embeddings = jax.lax.scan(forward_chunk, batch_stats, chunks)
  result, cotangents = grad_fn(join(embeddings))
  zeros = jax.tree.map(jnp.zeros_like, params)
  gradients, _ = jax.lax.scan(backward_chunk, zeros, (chunks, split(cotangents, microbatches)))
  return result, gradients, new_batch_stats


def split(tree: Any, parts: int) -> Any:
  """Cuts (n, ...) into (parts, n / parts, ...): part i has the rows i, i + parts, i + 2 parts, ...

  Rows are dealt out in turn, so that every device has an equal share of each part and none has to be sent, and so that
  a part's rows do not depend on the number of devices.
  """
  return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), tree)


def join(tree: Any) -> Any:
  """Undoes `split`."""
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)
