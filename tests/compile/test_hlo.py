import importlib.util
import json
import re

import jax
import jax.numpy as jnp
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from selfie_jax.training.programs import hlo
from tests.conftest import require
from tests.processes import run_python

ROUNDS = 5  # Of the worker's loop.
ROW = 256 * 4  # Bytes of a row of its arrays.


@pytest.fixture(scope='module', params=['cpu', 'v5p:2x2x4', 'v5e:4x4'])
def compiled(request, tmp_path_factory):
  """One program with every kind of collective, compiled for 8 CPU devices or for 16 TPUs, and how it was read."""
  program = compile_worker(request.param, 1, tmp_path_factory.mktemp('hlo') / 'parsed.json')
  return program | {'devices': 8 if request.param == 'cpu' else 16}


def compile_worker(topology, num_slices, output):
  if topology != 'cpu':
    require('libtpu', importlib.util.find_spec('libtpu'))
  run_python('-m', 'tests.compile.collectives_worker', topology, num_slices, output, devices=8)
  return json.loads(output.read_text())


def test_every_collective_is_found_once(compiled):
  names = '|'.join(hlo.KINDS)  # A start counts, its done does not.
  lines = re.findall(rf'^ *(?:ROOT )?%[\w.-]+ = .* (?:{names})(?:-start)?\(%', compiled['text'], re.MULTILINE)
  assert len(compiled['collectives']) == len(lines) == 7


def test_what_stands_in_a_loop_runs_in_each_of_its_rounds(compiled):
  inside = [c for c in compiled['collectives'] if 'inside' in c['parts'][0]['op_name']]
  read = {c['kind']: (c['bytes'], c['group_size'], c['runs'], c['runs_known']) for c in inside}
  assert len(inside) == 5
  assert read == {
    'collective-permute': (16 * ROW, 2, ROUNDS, True),
    'all-to-all': (16 * ROW, 4, ROUNDS, True),
    'all-gather': (4 * 16 * ROW, 4, ROUNDS, True),
    'reduce-scatter': (4 * 16 * ROW, 4, ROUNDS, True),
    'all-reduce': (16 * ROW, compiled['devices'], ROUNDS, True),
  }


def test_the_arrays_of_a_joined_collective_keep_their_origins(compiled):
  (joined,) = (c for c in compiled['collectives'] if 'first' in str(c['parts']))
  assert (joined['kind'], joined['runs']) == ('all-reduce', 1)
  shapes = {part['op_name'].split('/')[-2]: part['shape'] for part in joined['parts']}
  assert shapes['first'] == 'f32[16,256]'
  assert shapes['second'] == 'f32[256]'


def test_a_loop_of_unknown_length_is_said_to_be_one(compiled):
  (unknown,) = (c for c in compiled['collectives'] if 'unknown' in c['parts'][0]['op_name'])
  assert (unknown['runs'], unknown['runs_known']) == (1, False)


def test_what_goes_from_slice_to_slice_is_counted_too(tmp_path):
  program = compile_worker('v5e:2x4', 2, tmp_path / 'parsed.json')
  crossing = [c for c in program['collectives'] if c['kind'].startswith(hlo.CROSS_SLICE)]
  assert len(crossing) == len(re.findall(r' send\(', program['text'])) > 0
  assert {(c['kind'], c['group_size']) for c in crossing} == {('cross-slice all-reduce', 2)}
  # A slice sums among its own devices first, each of which sends an eighth of the sum (all of it, where it is small).
  (first,) = (c for c in crossing if '/first/' in c['parts'][0]['op_name'])
  assert first['bytes'] == 16 * ROW // 8
  # Then each has the other slice's eighth, and they gather the whole.
  assert any('/first/' in c['parts'][0]['op_name'] for c in program['collectives'] if c['kind'] == 'all-gather')


@pytest.mark.parametrize(
  ('groups', 'size'),
  [
    ('{{0,1,2,3},{4,5,6,7}}', 4),
    ('{}', 8),
    ('[2,4]<=[8]', 4),
    ('[4,2]<=[2,4]T(1,0)', 2),
    ("mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
    ("mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", 4),
    ("mesh['axis_0'=4,'axis_1'=2] {'axis_0':(1)2,'axis_1'}", 4),
    ("mesh['axis_0'=4,'axis_1'=2] {}", 1),
  ],
)
def test_groups_are_read_in_each_of_xlas_spellings(groups, size):
  text = f"""
ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %r = f32[8]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}, use_global_device_ids=true, to_apply=%add
}}
"""
  (found,) = hlo.Program(text).collectives(num_devices=8)
  assert found.group_size == size


def test_what_a_device_sends_is_what_it_does_not_keep():
  def sent_share(kind, group_size):
    return hlo.Collective(kind, '', (), group_size, 1, True).sent_share

  assert sent_share('all-gather', 4) == sent_share('reduce-scatter', 4) == sent_share('all-to-all', 4) == 3 / 4
  assert sent_share('all-reduce', 4) == 2 * 3 / 4
  assert sent_share('all-reduce', 1) == 0


def loop_text(operation, *shapes, rounds=3):
  """The program, not optimised, of `rounds` rounds of an operation on arrays of these shapes."""

  def program(*arrays):
    # The carry goes into the first array, so that the operation stays in the loop.
    return jax.lax.fori_loop(0, rounds, lambda i, total: total + operation(arrays[0] + total, *arrays[1:]).sum(), 0.0)

  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.jit(program).lower(*arrays).as_text(dialect='hlo')


def test_a_matrix_product_in_a_loop_counts_again_in_every_further_round():
  product = loop_text(lambda a, b: jnp.einsum('bij,bkj->bik', a, b), (2, 3, 5), (2, 7, 5))
  assert hlo.Program(product).loop_flops() == 2 * (2 * 2 * 3 * 7 * 5)


@settings(max_examples=40, deadline=None, derandomize=True)  # The compiler itself has crashed on some, once.
@given(
  sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
  kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
  strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
  padding=st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2),
  base=st.tuples(st.integers(1, 2), st.integers(1, 2)),
  dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
  groups=st.sampled_from([(1, 1), (2, 1), (1, 2)]),
)
def test_a_convolution_counts_the_products_that_are_not_with_padding(
  sizes, kernel, strides, padding, base, dilation, groups
):
  feature_groups, batch_groups = groups
  inputs, weights = (4, *sizes, 6), (*kernel, 6 // feature_groups, 4)

  def convolve(x, w):
    return jax.lax.conv_general_dilated(
      x, w, strides, padding, base, dilation, ('NHWC', 'HWIO', 'NHWC'), feature_groups, batch_groups
    )  # fmt: skip

  # A convolution of ones with ones adds up as many ones as there are products.
  output = convolve(jnp.ones(inputs), jnp.ones(weights))
  assume(output.size)
  assert hlo.Program(loop_text(convolve, inputs, weights)).loop_flops() == 2 * 2 * output.sum()
