"""Every library's way to store a pair, and what is refused."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_opt
from lora_opt import pairs

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(6, 2)), RNG.normal(size=(5, 2))  # tall
AS, BS = RNG.normal(size=(3, 6, 2)), RNG.normal(size=(3, 5, 2))


def nest(path, leaf, tree):
  *parents, last = path.split('/')
  for name in parents:
    tree = tree.setdefault(name, {})
  tree[last] = jnp.asarray(leaf)


def tree_of(**leaves):
  tree = {}
  for path, leaf in leaves.items():
    nest(path, leaf, tree)
  return tree


# layout, {path: leaf}, expected canonical a and b
CASES = [
  ('FLAX', {'q/lora_a': A, 'q/lora_b': B.T}, A[None], B[None]),
  ('FLAX', {'lora_a': A, 'lora_b': B.T}, A[None], B[None]),
  ('FLAX', {'l/q/lora_a': AS, 'l/q/lora_b': BS.mT}, AS, BS),
  ('QWIX', {'q/w_lora_a': A, 'q/w_lora_b': B.T}, A[None], B[None]),
  (
    'QWIX',  # einsum: (heads, dim, rank) and (rank, 5, 1)
    {'w_lora_a': A.reshape(3, 2, 2), 'w_lora_b': B.T.reshape(2, 5, 1)},
    A[None],
    B[None],
  ),
  (
    'QWIX_SCANNED_0',
    {'d/kernel_lora_a': AS, 'd/kernel_lora_b': BS.mT},
    AS,
    BS,
  ),
  (
    'QWIX_SCANNED_1',
    {
      'd/kernel_lora_a': AS.transpose(1, 0, 2),
      'd/kernel_lora_b': BS.transpose(2, 0, 1),
    },
    AS,
    BS,
  ),
  ('GEMMA', {'q/lora/a': A, 'q/lora/b': B.T}, A[None], B[None]),
  (
    'PEFT',
    {'m.q.lora_A.weight': A.T, 'm.q.lora_B.weight': B},
    A[None],
    B[None],
  ),
  (
    'PEFT',
    {'q/lora_A/default/weight': A.T, 'q/lora_B/default/weight': B},
    A[None],
    B[None],
  ),
  (
    'PEFT_EMBEDDING',  # here A starts at zero: it is our b
    {'e.lora_embedding_A': B.T, 'e.lora_embedding_B': A},
    A[None],
    B[None],
  ),
  (
    'KERAS',
    {'q/lora_kernel_a': A, 'q/lora_kernel_b': B.T},
    A[None],
    B[None],
  ),
  (
    'LEVANTER',
    {'q/lora/lora_A/weight/0': A.T, 'q/lora/lora_B/weight/0': B},
    A[None],
    B[None],
  ),
  (
    'LEVANTER_STACKED',
    {
      'stacked/q/lora/lora_A/weight/0': AS.mT,
      'stacked/q/lora/lora_B/weight/0': BS,
    },
    AS,
    BS,
  ),
  (
    'QWIX_BATCHED',  # scanned layers of three experts
    {'d/w_lora_a': AS[None], 'd/w_lora_b': BS.mT[None]},
    AS,
    BS,
  ),
  ('SKYRL', {'m/x/lora_A': AS, 'm/x/lora_B': BS.mT}, AS, BS),
  ('SKYRL', {'m/x/lora_A': AS[None], 'm/x/lora_B': BS.mT[None]}, AS, BS),
  (
    'AXLEARN',
    {'x/lora_down/weight': A, 'x/lora_up/weight': B.T},
    A[None],
    B[None],
  ),
  (
    'AXLEARN_QKV',  # (in, 3, rank), (3, rank, 5, 1)
    {
      'x/lora_down/weight': AS.transpose(1, 0, 2),
      'x/lora_up/weight': BS.mT[..., None],
    },
    AS,
    BS,
  ),
  (
    'AXLEARN_QKV_REPEATED',  # three layers of (in, 1, rank), (1, rank, 5, 1)
    {
      'x/lora_down/weight': AS[:, :, None],
      'x/lora_up/weight': BS.mT[:, None, ..., None],
    },
    AS,
    BS,
  ),
  (
    'AXLEARN_OUTPUT',  # (rank, 3, 2), (rank, out)
    {'x/lora_down/weight': A.T.reshape(2, 3, 2), 'x/lora_up/weight': B.T},
    A[None],
    B[None],
  ),
  (
    'AXLEARN_OUTPUT_REPEATED',
    {
      'x/lora_down/weight': AS.mT.reshape(3, 2, 3, 2),
      'x/lora_up/weight': BS.mT,
    },
    AS,
    BS,
  ),
  ('PLAIN', {'x/a': A, 'x/b': B.T}, A[None], B[None]),
  ('TALL', {'x/a': A, 'x/b': B}, A[None], B[None]),
]


@pytest.mark.parametrize('auto', [True, False])
@pytest.mark.parametrize(('name', 'leaves', 'a', 'b'), CASES)
def test_layouts(name, leaves, a, b, auto, caplog):
  tree = tree_of(**leaves)
  layout = pairs.AUTO if auto else getattr(pairs, name)
  with caplog.at_level(logging.INFO, 'lora_opt.pairs'):
    [site] = sites = pairs.find_sites(tree, layout)
  assert site.layout.name == name
  assert name in caplog.text  # it says which it took
  assert 'lora' in site.name and '/' not in site.name
  [pair] = pairs.extract_pairs(tree, sites).values()
  np.testing.assert_allclose(pair.a, a, rtol=1e-6)
  np.testing.assert_allclose(pair.b, b, rtol=1e-6)
  again = pairs.restore_pairs({site.name: pair}, sites, tree)
  jax.tree.map(np.testing.assert_array_equal, again, tree)
  # Vectors along the long axes, with the rank where the leaf has it or last.
  for rank_last in (True, False):
    [pair] = pairs.extract_pairs(tree, sites, rank_last=rank_last).values()
    axes = {f: 1 if x.shape[1] == 2 else 2 for f, x in pair._asdict().items()}
    vectors = pairs.LoraPair(
      *(jnp.take(x, jnp.array([0]), axes[f]) for f, x in pair._asdict().items())
    )
    kept = pairs.restore_pairs(
      {site.name: vectors}, sites, tree, rank_last=rank_last
    )
    for one, whole in zip(
      jax.tree.leaves(kept), jax.tree.leaves(tree), strict=True
    ):
      assert one.ndim == whole.ndim and one.size * 2 == whole.size
    [again] = pairs.extract_pairs(kept, sites, rank_last=rank_last).values()
    jax.tree.map(np.testing.assert_array_equal, again, vectors)


def test_our_own_tree_is_certain_when_every_size_is_equal():
  tree = tree_of(
    **{
      'q/lora_a': RNG.normal(size=(2, 2, 2)),
      'q/lora_b': RNG.normal(size=(2, 2, 2)),
    }
  )
  [site] = pairs.find_sites(tree)
  assert site.layout is pairs.FLAX and site.batch_shape == (2,)
  [pair] = pairs.extract_pairs(tree, [site]).values()
  np.testing.assert_array_equal(pair.b, tree['q']['lora_b'].mT)


def test_nnx_lora_and_its_optimizer():
  model = nnx.LoRA(6, 2, 5, rngs=nnx.Rngs(0))
  state = nnx.state(model, nnx.LoRAParam)
  [site] = pairs.find_sites(state)
  assert site.layout is pairs.FLAX and site.fan_out == 5
  tx = nnx.Optimizer(model, lora_opt.lora_rite(0.1), wrt=nnx.LoRAParam)
  x = jnp.ones((3, 6))

  def loss(model):
    return jnp.mean(jnp.square(model(x) - 1))

  @nnx.jit
  def step(model, tx):
    gradients = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
    tx.update(model, gradients)

  first = loss(model)
  for _ in range(10):
    step(model, tx)
  assert loss(model) < first / 2


def test_a_or_b_elsewhere_is_not_a_pair():
  tree = tree_of(**{'q/lora_a': A, 'q/lora_b': B.T, 'norm/b': A})
  [site] = pairs.find_sites(tree)
  assert site.name == 'q.lora'


@pytest.mark.parametrize(
  ('leaves', 'message'),
  [
    ({'w': A}, r'no LoRA pair found among 1 leaves \(w'),
    ({'q/lora_b': B.T}, r"q/lora_b \(2, 5\) has no partner: factor 'a'"),
    ({'q/lora_a': A, 'q/lora_b': A}, r'\(6, 2\) and .* do not fit together'),
    ({'q/lora_a': AS, 'q/lora_b': BS.mT[:2]}, r'rank or batch axes differ'),
    ({'x/a': np.ones((4, 2)), 'x/b': np.ones((2, 2))}, 'read as PLAIN/TALL'),
    (
      {'w_lora_a': np.ones((3, 4, 3)), 'w_lora_b': np.ones((3, 3, 5))},
      'layout=lora_opt.pairs.QWIX',
    ),
    (  # as many experts as ranks
      {'w_lora_a': np.ones((5, 2, 8, 2)), 'w_lora_b': np.ones((5, 2, 2, 6))},
      'read as QWIX_SCANNED_0/QWIX_BATCHED',
    ),
    (
      {'lora_A': np.ones((3, 4, 4)), 'lora_B': np.ones((3, 4, 4))},
      'read as PEFT/SKYRL',
    ),
  ],
)
def test_refused_with_path_shapes_and_fix(leaves, message):
  with pytest.raises(ValueError, match=message):
    pairs.find_sites(tree_of(**leaves))


def test_a_layout_for_some_paths_stands_before_the_others():
  tree = tree_of(
    **{
      'q/w_lora_a': A,
      'q/w_lora_b': B.T,
      'experts/w_lora_a': np.ones((2, 8, 2)),
      'experts/w_lora_b': np.ones((2, 2, 6)),
    }
  )
  with pytest.raises(ValueError, match='read as QWIX/QWIX_SCANNED_0'):
    pairs.find_sites(tree)
  experts = pairs.QWIX_SCANNED_0._replace(
    pattern=r'(?P<module>experts/.*)_lora_(?P<factor>[ab])'
  )
  sites = {
    s.name: s.batch_shape
    for s in pairs.find_sites(tree, (experts, *pairs.AUTO))
  }
  assert sites == {'q.w.lora': (), 'experts.w.lora': (2,)}


def test_two_leaves_for_one_factor():
  tree = {'q': {'lora_a': A, 'lora_b': B.T}}
  twice = pairs.FLAX._replace(
    pattern=r'(?P<module>.*?)\d?/lora_(?P<factor>[ab])'
  )
  with pytest.raises(ValueError, match='are both factor'):
    pairs.find_sites({'q1': tree['q'], 'q2': tree['q']}, twice)


def test_labels():
  tree = {'q': {'lora_a': A, 'lora_b': B.T}, 'w': A}
  labels = pairs.lora_labels(tree)
  assert labels == {'q': {'lora_a': 'lora', 'lora_b': 'lora'}, 'w': 'other'}
  assert pairs.lora_labels({}) == {}


@pytest.mark.parametrize(
  'recipe',
  ['adamw', 'lora_plus', 'reflora', 'reflora_s', 'lora_rite', 'lamb', 'polora'],
)
def test_einsum_pairs_step_as_their_flat_form(recipe):
  flat, shaped = {}, {}
  dims = {'q': ((6,), (4, 3)), 'o': ((6,), (12,)), 'k': ((6,), (2, 6))}
  for name, (fan_in, fan_out) in dims.items():
    a, b = RNG.normal(size=(6, 2)), RNG.normal(size=(2, 12))
    flat[name] = {'w_lora_a': jnp.asarray(a), 'w_lora_b': jnp.asarray(b)}
    shaped[name] = {
      'w_lora_a': jnp.asarray(a).reshape(*fan_in, 2),
      'w_lora_b': jnp.asarray(b).reshape(2, *fan_out),
    }
  tx = getattr(lora_opt, recipe)(0.1)

  @jax.jit
  def first_step(tree):
    return jax.jit(tx.update)(
      jax.tree.map(jnp.cos, tree), jax.jit(tx.init)(tree), tree
    )[0]

  for _ in range(3):
    one, two = first_step(flat), first_step(shaped)
    two_flat = jax.tree.map(lambda x, like: x.reshape(like.shape), two, one)
    # The same operations on the same numbers.
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-9),
      two_flat,
      one,
    )
    flat = jax.tree.map(jnp.add, flat, one)
    shaped = jax.tree.map(jnp.add, shaped, two)


@pytest.mark.parametrize(
  'tree',
  [
    {'lora_A': {'kernel': (64, 4)}, 'lora_B': {'kernel': (4, 64)}},
    {'lora_a': (4, 64), 'lora_b': (64, 4)},
    {'a': (4, 64), 'b': (64, 4)},
  ],
  ids=lambda tree: '-'.join(tree),
)
def test_a_square_pair_with_its_axes_exchanged_is_refused(tree):
  shapes = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s, 'float32'),
    {'q': tree},
    is_leaf=lambda x: isinstance(x, tuple),
  )
  with pytest.raises(ValueError, match=r'would have rank 64 for a 4 x 4'):
    pairs.find_sites(shapes)


@pytest.mark.parametrize(
  ('layout', 'message'),
  [
    ('FLAX', r"layout='FLAX' must be a LoraLayout or several"),
    (pairs.FLAX._replace(pattern='.*lora_[ab]'), 'needs a group .*factor'),
    (
      pairs.FLAX._replace(pattern='(?P<module>.*)/(?P<factor>lora_[ab])'),
      "group `factor` reads 'lora_a' of q/lora_a, not 'a' or 'b'",
    ),
  ],
)
def test_a_layout_with_a_mistake_is_told_so(layout, message):
  tree = {'q': {'lora_a': jnp.ones((8, 2)), 'lora_b': jnp.ones((2, 4))}}
  with pytest.raises(ValueError, match=message):
    pairs.find_sites(tree, layout)


def test_axes_may_be_counted_from_the_end():
  tree = {'lora_a': jnp.ones((3, 8, 2)), 'lora_b': jnp.ones((3, 2, 4))}
  forth, back = (
    pairs.find_sites(tree, pairs.FLAX._replace(batch_axes=axes))
    for axes in ((0,), (-3,))
  )
  one, two = (pairs.extract_pairs(tree, sites) for sites in (forth, back))
  assert jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, two)
