import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from selfie_jax.config import Augment, Config, Mesh
from selfie_jax.errors import UserError
from selfie_jax.training import mesh as mesh_lib
from selfie_jax.training.optimizer import make_optimizer
from selfie_jax.training.state import init_state
from tests.processes import run_python

FOUR_BY_TWO = AbstractMesh((4, 2), ('data', 'fsdp'))


@pytest.fixture(scope='module')
def shapes():
  return jax.eval_shape(lambda: init_state(Config(), make_optimizer(Config())))


def specs(shapes, strategy, mesh=FOUR_BY_TWO):
  tree = mesh_lib.state_shardings(shapes, mesh, strategy)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value'): leaf.spec
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def test_kernels_and_their_moments_are_cut_over_fsdp_and_small_arrays_are_not(shapes):
  found = specs(shapes, Mesh().strategy)
  for tree in ('params', 'opt_state/0/mu', 'opt_state/0/nu'):
    assert found[f'{tree}/encoder/dense2/kernel'] == PartitionSpec('fsdp')
    assert found[f'{tree}/encoder/dense1/kernel'] == PartitionSpec(None, 'fsdp')  # 512 x 2048: the longer one.
    assert found[f'{tree}/encoder/dense1/bias'] == PartitionSpec()
  assert {spec for name, spec in found.items() if name.startswith('batch_stats')} == {PartitionSpec()}
  assert found['step'] == PartitionSpec()


def test_the_first_pattern_that_matches_decides_and_no_match_replicates(shapes):
  found = specs(shapes, (('dense2', 'replicate'), ('dense', 'fsdp')))
  assert found['params/encoder/dense2/kernel'] == PartitionSpec()
  assert found['params/encoder/dense1/kernel'] == PartitionSpec(None, 'fsdp')
  assert found['params/projector/output/kernel'] == PartitionSpec()


def test_what_does_not_divide_is_replicated():
  shapes = {'odd': jax.ShapeDtypeStruct((3, 5), float), 'even': jax.ShapeDtypeStruct((9, 4), float)}
  found = specs(shapes, (('.*', 'fsdp'),))
  assert found == {'odd': PartitionSpec(), 'even': PartitionSpec(None, 'fsdp')}


def test_without_fsdp_everything_is_replicated(shapes):
  mesh = AbstractMesh((8, 1), ('data', 'fsdp'))
  assert set(specs(shapes, (('.*', 'fsdp'),), mesh).values()) == {PartitionSpec()}


def test_groups_that_do_not_divide_the_devices_are_refused_with_both_numbers():
  with pytest.raises(UserError, match='mesh.fsdp 3 does not divide the 1 devices'):
    mesh_lib.make_mesh(3)


def test_a_batch_is_cut_in_whole_mixup_groups_and_equal_microbatches():
  mesh_lib.check_batch(Config(batch_size=256, microbatches=4), 4)
  with pytest.raises(UserError, match='256 cannot be divided over 32 devices in whole mixup groups of 16: .* 512'):
    mesh_lib.check_batch(Config(batch_size=256), 32)
  without_mixup = Config(batch_size=256, augment=Augment(mixup_ratio=0.0))
  with pytest.raises(UserError, match='256 cannot be divided over 3 devices in equal parts: .* 255'):
    mesh_lib.check_batch(without_mixup, 3)
  with pytest.raises(UserError, match='256 cannot be divided over 4 devices in equal microbatches: .* 192'):
    mesh_lib.check_batch(Config(batch_size=256, microbatches=3), 4)


def test_rows_lie_on_devices_in_order_whatever_fsdp_is():
  run_python('-m', 'tests.training.rows_worker', devices=8)
