"""Costs of compiled programs: by hand, by closed form, and in loops."""

import jax
import jax.numpy as jnp
import pytest

from lora_opt.models.attend import attend
from lora_opt.models.visibility import Visibility
from lora_opt.planning import hlo
from lora_opt.planning.costs import costs
from lora_opt.planning.groups import device_groups
from lora_opt.planning.operations import product_flops

# A loop of five rounds around a gather and a product, a conditional, and a sum
# of the optimizer after it.
PROGRAM = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%fused (a: bf16[8,16], b: bf16[16,4]) -> bf16[8,4] {
  %a = bf16[8,16]{1,0} parameter(0)
  %b = bf16[16,4]{1,0} parameter(1)
  ROOT %dot.1 = bf16[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
}

%body (p: (s32[], bf16[5,8,4], bf16[8,16])) -> (s32[], bf16[5,8,4], \
bf16[8,16]) {
  %p = (s32[], bf16[5,8,4]{2,1,0}, bf16[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %kept = bf16[5,8,4]{2,1,0} get-tuple-element(%p), index=1
  %rows = bf16[8,16]{1,0} get-tuple-element(%p), index=2
  %part = bf16[2,4]{1,0} constant({...})
  %gathered = bf16[16,4]{1,0} all-gather(%part), channel_id=1, \
replica_groups=[1,8]<=[8], dimensions={0}, metadata={op_name="jit(step)/mul"}
  %y = bf16[8,4]{1,0} fusion(%rows, %gathered), kind=kCustom, calls=%fused
  %slice = bf16[1,8,4]{2,1,0} bitcast(%y)
  %stack = bf16[5,8,4]{2,1,0} dynamic-update-slice(%kept, %slice, %i), \
metadata={op_name="jit(step)/jvp()/while/body/dynamic_update_slice"}
  ROOT %t = (s32[], bf16[5,8,4]{2,1,0}, /*index=2*/bf16[8,16]{1,0}) \
tuple(%i, %stack, %rows)
}

%condition (p.1: (s32[], bf16[5,8,4], bf16[8,16])) -> pred[] {
  %p.1 = (s32[], bf16[5,8,4]{2,1,0}, bf16[8,16]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%yes (q: f32[4,4]) -> f32[4,4] {
  %q = f32[4,4]{1,0} parameter(0)
  ROOT %dot.2 = f32[4,4]{1,0} dot(%q, %q), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
}

%no (q.1: f32[4,4]) -> f32[4,4] {
  ROOT %q.1 = f32[4,4]{1,0} parameter(0)
}

ENTRY %main (s: (s32[], bf16[5,8,4], bf16[8,16]), m: f32[4,4]) -> f32[4,4] {
  %s = (s32[], bf16[5,8,4]{2,1,0}, bf16[8,16]{1,0}) parameter(0)
  %m = f32[4,4]{1,0} parameter(1)
  %loop = (s32[], bf16[5,8,4]{2,1,0}, bf16[8,16]{1,0}) while(%s), \
condition=%condition, body=%body, backend_config={"dynamic_variables":[],\
"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}
  %due = pred[] constant(true)
  %c = f32[4,4]{1,0} conditional(%due, %m, %m), \
true_computation=%yes, false_computation=%no
  ROOT %sum.1 = f32[4,4]{1,0} all-reduce(%c), channel_id=2, \
replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add, \
metadata={op_name="jit(step)/optimizer/dot_general"}
}
"""


def test_a_loop_counts_as_often_as_it_runs():
  found = costs(PROGRAM, devices=8, flops=3)
  assert found.flops == 3
  read_and_written = 2 * (8 * 16 + 16 * 4 + 8 * 4)
  assert found.product_bytes == 5 * read_and_written + 3 * 4 * 16
  assert found.kept_bytes == 2 * 5 * 8 * 4


def test_collectives():
  gather, total = costs(PROGRAM, 8, 0).collectives
  assert (gather.kind, gather.bytes, gather.times) == ('all-gather', 128, 5)
  assert gather.sent == 5 * 128 * 7 / 8
  assert not gather.optimizer
  assert gather.leaves(4) and not gather.leaves(8)
  assert (total.kind, total.bytes, total.times) == ('all-reduce', 64, 1)
  assert total.sent == 64  # 2 (n - 1) / n of it
  assert total.optimizer and total.elements == 16
  assert not total.leaves(2)


def test_branches_may_be_listed():
  pair = 'true_computation=%yes, false_computation=%no'
  listed = PROGRAM.replace(pair, 'branch_computations={%no, %yes}')
  assert listed != PROGRAM
  assert costs(listed, 8, 0) == costs(PROGRAM, 8, 0)


def test_types_twice_as_wide_as_meant():
  plain, wide = (costs(PROGRAM, 8, 0, width) for width in (1, 2))
  assert wide.product_bytes == plain.product_bytes / 2
  assert wide.kept_bytes == plain.kept_bytes / 2
  assert [c.bytes for c in wide.collectives] == [64, 32]


@pytest.mark.parametrize(
  ('attributes', 'groups'),
  [
    ("mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("mesh['a'=2,'b'=4] {'b':(1)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
    ("mesh['a'=2,'b'=4] {'b':(2)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("mesh['a'=2,'b'=4] {'a','b':(2)2}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
    (
      "mesh['a'=2,'b'=4], device_ids=([2,2,2]T(1,0,2)) {'a'}",
      [[0, 2], [1, 3], [4, 6], [5, 7]],
    ),
    ('[4,2]<=[2,4]T(1,0)', [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ('[2,4]<=[8]', [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ('{}', [[0, 1, 2, 3, 4, 5, 6, 7]]),
  ],
)
def test_groups_of_devices(attributes, groups):
  assert device_groups(f'replica_groups={attributes}, x=1', 8) == groups


def test_groups_in_a_form_that_is_not_known():
  with pytest.raises(ValueError, match='unknown form'):
    device_groups('replica_groups=mesh<x>', 8)


def test_shapes():
  text = 'ENTRY %m (a: s4[3]) -> token[] {\n  %a = s4[3]{0} parameter(0)\n}'
  _, computations = hlo.parse(text)
  (a,) = computations['m']
  assert a.results == (hlo.Shape('s4', (3,)),) and a.bytes == 1
  assert hlo.Shape('pred', (3,)).bytes == 3
  assert hlo.Shape('token', ()).bytes == 0
  assert hlo.Shape('f8e4m3fn', (3,)).bytes == 3


def test_a_scan_is_counted_by_its_length():
  layers, rows, width = 7, 32, 48

  def loss(x, kernels):
    def layer(x, kernel):
      return jnp.tanh(x @ kernel), None

    return jnp.sum(jax.lax.scan(layer, x, kernels)[0])

  x = jax.ShapeDtypeStruct((rows, width), 'float32')
  kernels = jax.ShapeDtypeStruct((layers, width, width), 'float32')
  step = jax.jit(jax.grad(loss, argnums=(0, 1)))
  traced = step.trace(x, kernels)
  compiled = traced.lower().compile()
  flops = product_flops(traced.jaxpr)
  # Forward, and backward for the rows and for the kernels.
  assert flops == 3 * layers * 2 * rows * width * width
  assert compiled.cost_analysis()['flops'] < flops / 2
  found = costs(compiled.as_text(), 1, flops)
  # Each layer's input, and what the derivative of tanh needs.
  assert found.kept_bytes % (layers * rows * width * 4) == 0
  assert found.kept_bytes >= 2 * layers * rows * width * 4
  assert found.collectives == ()


def test_a_collective_that_goes_on_in_several_fusions_counts_once():
  again = PROGRAM.replace(
    '  %slice = bf16[1,8,4]',
    '  %more = bf16[16,4]{1,0} all-gather(%part), channel_id=1, '
    'replica_groups=[1,8]<=[8], dimensions={0}\n  %slice = bf16[1,8,4]',
  )
  assert again != PROGRAM
  assert costs(again, 8, 0) == costs(PROGRAM, 8, 0)


def test_recomputation_branches_and_loops_of_the_trace():
  def f(x, due):
    layer = jax.checkpoint(lambda x: jnp.tanh(x @ x))
    y = jax.lax.cond(due, lambda x: x @ x @ x, lambda x: x, x)
    z = jax.lax.fori_loop(0, 5, lambda i, z: z @ z, x)
    return jnp.sum(layer(x) + y + z)

  x = jnp.ones((8, 8))
  program = jax.make_jaxpr(f)(x, True)
  assert product_flops(program) == (1 + 2 + 5) * 2 * 8**3
  layer = jax.checkpoint(lambda x: jnp.sum(jnp.tanh(x @ x)))
  program = jax.make_jaxpr(jax.grad(layer))(x)
  # Forward, once more for the backward pass, and two gradients.
  assert product_flops(program) == 4 * 2 * 8**3


WINDOWED = """HloModule windowed, is_scheduled=true

%body (p: (u32[], f32[8])) -> (u32[], f32[8]) {
  %two = u32[]{:T(128)} constant(2)
  %p = (u32[]{:T(128)}, f32[8]{0}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %next = u32[]{:T(128)} add(%i, %two)
  %y = f32[8]{0} negate(%x)
  ROOT %t = (u32[], f32[8]) tuple(%next, %y)
}

%condition (q: (u32[], f32[8])) -> pred[] {
  %eight = u32[]{:T(128)} constant(8)
  %q = (u32[]{:T(128)}, f32[8]{0}) parameter(0)
  %j = u32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %eight), direction=LT
}

ENTRY %main (s: (u32[], f32[8])) -> (u32[], f32[8]) {
  %s = (u32[], f32[8]{0}) parameter(0)
  ROOT %loop = (u32[], f32[8]) while(%s), condition=%condition, body=%body
}
"""


def test_a_loop_that_counts_in_twos():
  times = {e.instruction.name: e.times for e in hlo.executed(WINDOWED)}
  assert times['y'] == 4
  by_one = WINDOWED.replace('constant(2)', 'constant(1)')
  times = {e.instruction.name: e.times for e in hlo.executed(by_one)}
  assert times['y'] == 8


@pytest.mark.parametrize(
  ('implementation', 'products'),
  # Forward two; backward five, of which splash does the scores and those of
  # the weights twice.
  [('plain', 2 + 4), ('blockwise', 2 + 5), ('splash', 2 + 7)],
)
def test_products_of_attention(implementation, products):
  length, heads, width = 1024, 4, 16
  x = jax.ShapeDtypeStruct((2, length, heads, width), 'float32')
  seen = Visibility(jnp.ones((2, length), jnp.int32))

  def loss(q, k, v):
    return attend(q, k, v, seen, implementation=implementation).sum()

  program = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(x, x, x)
  each = 2 * 2 * heads * length**2 * width
  # Sums over the width alone are products too, a thousandth of one.
  assert product_flops(program) == pytest.approx(products * each, rel=1e-3)


def test_what_other_platforms_do_does_not_count():
  def f(x):
    return jax.lax.platform_dependent(
      x, tpu=lambda x: x @ x @ x, default=lambda x: x @ x
    )

  program = jax.make_jaxpr(jax.jit(f))(jnp.ones((8, 8)))
  found = [product_flops(program, name) for name in ('tpu', 'cuda', None)]
  assert found == [2 * 2 * 8**3, 2 * 8**3, 2 * 2 * 8**3]


def test_what_every_device_does_counts_for_each():
  kinds = (jax.sharding.AxisType.Auto,)
  mesh = jax.sharding.AbstractMesh((4,), ('x',), axis_types=kinds)
  split = jax.sharding.PartitionSpec('x')
  f = jax.shard_map(
    lambda x: x @ x.T, mesh=mesh, in_specs=split, out_specs=split
  )
  program = jax.make_jaxpr(f)(jnp.ones((8, 16)))
  assert product_flops(program) == 4 * 2 * 2 * 2 * 16
