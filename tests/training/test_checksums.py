import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfie_jax.training.checkpointing.checksums import (
  DamagedError,
  check_items,
  check_leaves,
  leaf_checksums,
  make_record,
)
from tests.processes import run_python

DTYPES = [jnp.float32, jnp.bfloat16, jnp.uint16, jnp.int32, jnp.int8, jnp.bool_]


def _array(dtype, shape=(6, 5), seed=0):
  numbers = np.random.default_rng(seed).normal(size=shape) * 50
  return jnp.asarray(numbers > 0 if dtype == jnp.bool_ else numbers).astype(dtype)


def _checksum(array):
  (found,) = leaf_checksums([array]).values()
  return found


def _by_hand(array):
  """The same sums, in Python's integers."""

  def mix(word):
    word = (word ^ (word >> 16)) * 0x85EBCA6B % 2**32
    word = (word ^ (word >> 13)) * 0xC2B2AE35 % 2**32
    return word ^ (word >> 16)

  words = np.asarray(array).view(np.uint32).ravel().tolist()
  sums = [sum(mix(word ^ mix(i ^ seed)) for i, word in enumerate(words)) for seed in (0x9E3779B9, 0x3C6EF372)]
  return ''.join(f'{total % 2**32:08x}' for total in sums)


@pytest.mark.parametrize('dtype', [np.float32, np.int32])
def test_a_checksum_is_what_its_definition_says(dtype):
  array = _array(dtype, (3, 4, 2))
  assert _checksum(array) == _by_hand(array)


def test_doubles_count_both_of_their_words():
  with jax.enable_x64(True):
    array = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    assert array.dtype == jnp.float64
    assert _checksum(array) == _by_hand(array)


@pytest.mark.parametrize('dtype', DTYPES, ids=lambda dtype: jnp.dtype(dtype).name)
def test_every_single_element_counts_and_so_does_its_place(dtype):
  array = np.array(_array(dtype))
  seen = {_checksum(array)}
  for index in np.ndindex(array.shape):
    changed = array.copy()
    changed[index] = changed[index] == 0  # 1 where it was 0, and 0 elsewhere.
    seen.add(_checksum(changed))
  swapped = array.copy()
  swapped[[0, 1]] = swapped[[1, 0]]
  seen.add(_checksum(swapped))
  assert len(seen) == array.size + 2


def test_bits_count_where_values_are_equal():
  assert _checksum(jnp.zeros(3)) != _checksum(-jnp.zeros(3))
  nan = np.array([0x7FC00000], np.uint32)
  assert _checksum(nan.view(np.float32)) != _checksum((nan + 1).view(np.float32))


def test_scalars_empty_arrays_and_random_keys_have_one():
  tree = {
    'step': jnp.int32(7),
    'none': jnp.zeros((0, 3)),
    'key': jax.random.key(1),
    'keys': jax.random.split(jax.random.key(1)),
  }
  found = leaf_checksums(tree)
  assert found.keys() == tree.keys()
  assert found['none'] == '0' * 16
  assert len(set(found.values())) == 4


def test_it_does_not_matter_how_an_array_is_cut_and_none_is_gathered():
  """A state may well be cut over devices because it fits on none."""
  program = (
    'import jax, numpy as np\n'
    'from jax.sharding import AxisType, NamedSharding, PartitionSpec as P\n'
    'from selfie_jax.training.checkpointing import checksums\n'
    "mesh = jax.make_mesh((2, 2), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)\n"
    'array = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)\n'
    'found = set(checksums.leaf_checksums([jax.numpy.asarray(array)]).values())\n'
    "for spec in (P(), P('fsdp'), P(None, 'fsdp'), P('data', 'fsdp'), P(('data', 'fsdp'))):\n"
    '  leaf = jax.device_put(array, NamedSharding(mesh, spec))\n'
    "  with jax.transfer_guard('disallow'):\n"
    '    found |= set(checksums.leaf_checksums([leaf]).values())\n'
    '  program = checksums._sums.lower(leaf, NamedSharding(mesh, P())).compile().as_text()\n'
    "  assert 'all-gather' not in program\n"
    "assert 'all-reduce' in program\n"
    'print(*found)\n'
  )
  expected = _checksum(np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32))
  assert run_python('-c', program, devices=4).stdout.split() == [expected]


def test_what_does_not_agree_is_named():
  state = {'params': {'dense': _array(jnp.float32)}, 'step': jnp.int32(3)}
  items = {'data': {'fingerprint': 'a', 'mean': 0.1}, 'config': {'splits': ('train',)}}
  record = make_record(3, state, items)
  check_items(record, 3, items | {'config': {'splits': ['train']}})  # As JSON has it.
  check_leaves(record, {'params': state['params']})
  with pytest.raises(DamagedError, match='it is the checkpoint of step 3'):
    check_items(record, 4, items)
  with pytest.raises(DamagedError, match='item "data" is not what was saved'):
    check_items(record, 3, items | {'data': {'fingerprint': 'a', 'mean': 0.2}})
  with pytest.raises(DamagedError, match='checksums are damaged themselves'):
    check_items(record | {'step': 4}, 4, items)
  with pytest.raises(DamagedError, match='the values of params/dense are not those that were saved'):
    check_leaves(record, {'params': {'dense': state['params']['dense'].at[2, 3].add(1e-6)}})
