"""What the experiments on time and memory compute from what they measure."""

import types

import numpy as np
import pytest

from experiments import results
from experiments.growth import run as growth
from experiments.training_step import where


def test_nothing_grows_faster_than_its_work():
  rows = results.load_rows(growth.FOLDER / 'results.jsonl')
  for about in growth.POINTS:
    found = growth.series(rows, about)
    time, products = (
      growth.exponent(found['point'], found[name])
      for name in ('seconds', 'flops')
    )
    # Small sizes have costs of their own, so time grows slower if anything.
    assert time <= products + 0.15, about


def test_a_step_is_put_into_its_kinds():
  program = """
HloModule jit_step

%fused (a: f32[8,4], b: f32[4,16]) -> f32[8,16] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[4,16]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[8,4], a: f32[4,16], w: f32[4,5]) -> f32[8,5] {
  %x = f32[8,4]{1,0} parameter(0)
  %a.1 = f32[4,16]{1,0} parameter(1)
  %w = f32[4,5]{1,0} parameter(2)
  %fusion.1 = f32[8,16]{1,0} fusion(%x, %a.1), kind=kCustom, calls=%fused
  ROOT %dot.2 = f32[8,5]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""  # noqa: E501
  found = where.works(program, vocabulary=99)
  kinds = {name: work.kind for name, work in found.items()}
  assert kinds['fusion.1'] == 'products with adapters'
  assert kinds['dot.2'] == 'products with frozen weights'
  assert found['fusion.1'].flops == 2 * 8 * 4 * 16
  assert found['dot.2'].flops == 2 * 8 * 4 * 5
  assert set(kinds.values()) <= set(where.KINDS)


def test_useful_products_are_those_of_one_pass_each_way():
  config = types.SimpleNamespace(
    num_layers=1,
    vocab_size=0,
    embed_dim=2,
    num_heads=1,
    head_dim=0,
    projections={'layers/q': (2, 3), 'embedding': (7, 7)},
  )
  expected = 2 * (2 * 2 * 3 + 3 * where.RANK * (2 + 3))
  assert where.useful_flops(config, rows=1, length=1) == expected


def test_powers_are_found():
  points = np.array([1, 2, 4, 10])
  assert growth.exponent(points, 7 * points**1.5) == pytest.approx(1.5)
