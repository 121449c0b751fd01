"""Checksums of a train state's values: they tell whether what was restored is what was saved.

Orbax restores a flipped byte without a word. A checksum of files would not do: how many there are, and what is in them,
depends on the number of hosts, and on their way from the devices values pass through more than files. So these are
computed on the devices, before a save and after a restore, from each array's values and their positions. They are sums
of integers, so that the order of the terms, and with it how an array is cut over devices, does not matter.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

_SEEDS = (0x9E3779B9, 0x3C6EF372)  # Of the two sums, 32 bits each.

JsonItem = Mapping[str, Any]


class DamagedError(Exception):
  """A checkpoint cannot be read, or does not hold what was saved; the message says which part."""


def make_record(step: int, state: Any, items: Mapping[str, JsonItem]) -> dict[str, Any]:
  """Returns what a checkpoint must agree with when it is read: to be saved with it, as JSON.

  Args:
    step: its number.
    state: a tree of arrays, on the devices.
    items: what is saved beside the state, by name.
  """
  record = {'step': step, 'leaves': leaf_checksums(state), 'items': {name: _digest(items[name]) for name in items}}
  return record | {'digest': _digest(record)}


def check_items(record: dict[str, Any], step: int, items: Mapping[str, JsonItem]) -> None:
  """Checks a record itself, and what was saved beside the state.

  Raises:
    DamagedError: names what does not agree.
  """
  facts = {key: value for key, value in record.items() if key != 'digest'}
  if record.get('digest') != _digest(facts):
    raise DamagedError('its checksums are damaged themselves')
  if facts['step'] != step:
    raise DamagedError(f'it is the checkpoint of step {facts["step"]}')
  for name, item in items.items():
    if facts['items'].get(name) != _digest(item):
      raise DamagedError(f'its item "{name}" is not what was saved')


def check_leaves(record: dict[str, Any], state: Any) -> None:
  """Checks restored arrays, all of a train state's or some.

  Raises:
    DamagedError: names the first one whose values are not those that were saved.
  """
  for name, found in leaf_checksums(state).items():
    saved = record['leaves'].get(name)
    if found != saved:
      raise DamagedError(f'the values of {name} are not those that were saved (checksum {found}, saved {saved})')


def leaf_checksums(tree: Any) -> dict[str, str]:
  """Returns the checksum of every array in a tree, 16 hexadecimal digits, by its path.

  The arrays may be cut over the devices of many processes: all of them must ask, and get the same answer. A change of
  one 32-bit word of an array, or of a smaller element, always changes its checksum; any other change leaves it as it is
  with a probability of 2^-64.
  """
  leaves = jax.tree.leaves_with_path(tree)
  # One by one: for each, some backends write all that is summed to memory first. Arrays of one shape share a program.
  sums = jax.device_get([_sums(leaf, _everywhere(leaf)) for _, leaf in leaves])
  return {leaf_name(path): f'{first:08x}{second:08x}' for (path, _), (first, second) in zip(leaves, sums, strict=True)}


def leaf_name(path: tuple[Any, ...]) -> str:
  """Returns an array's path in a train state, such as `params/encoder/dense1/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')  # NNX's box.


def _digest(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _everywhere(leaf: jax.Array) -> NamedSharding | None:
  sharding = getattr(leaf, 'sharding', None)
  return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None


@functools.partial(jax.jit, static_argnums=1)
def _sums(leaf: jax.Array, everywhere: NamedSharding | None) -> jax.Array:
  """Returns the two sums of an array, on every device."""
  words = _words(leaf)
  # Of the whole array, and without giving it another shape: XLA would gather a sharded one for that.
  position = jnp.zeros(words.shape, jnp.uint32)
  for axis, length in enumerate(words.shape):
    position = position * jnp.uint32(length % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
  # At a given position `_mix(word ^ ...)` differs for any two words, so that no single change is lost in the sum.
  terms = (_mix(words ^ _mix(position ^ jnp.uint32(seed))) for seed in _SEEDS)
  sums = jnp.stack([jnp.sum(term, dtype=jnp.uint32) for term in terms])
  return sums if everywhere is None else jax.lax.with_sharding_constraint(sums, everywhere)


def _words(leaf: jax.Array) -> jax.Array:
  """Returns an array's bits as words of 32; those of a smaller element fill one, those of a larger one two."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  if leaf.dtype == jnp.bool_:
    return leaf.astype(jnp.uint32)
  unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
  return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


def _mix(word: jax.Array) -> jax.Array:
  """A bijection of 32-bit words that lets each bit depend on all: the last steps of MurmurHash3 (Appleby, 2011)."""
  word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
  word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
  return word ^ (word >> 16)
