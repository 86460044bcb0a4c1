"""Where each library keeps the two factors of a LoRA pair, and on which axes.

There is one constant per layout; users can define a `LoraLayout` of their own.
`lora_opt.pairs` reads trees with these layouts and re-exports their names.
"""

from collections.abc import Sequence
from typing import NamedTuple


class LoraLayout(NamedTuple):
  """Where a library keeps its LoRA pairs.

  `a` is always the factor that is initialised at random and `b` the one that
  starts at zero, whatever the library calls them.
  """

  name: str
  # Matched against the whole path, 'outer/inner/leaf'. The group `factor` tells
  # the factors apart; `module` and any further group are the same for both.
  pattern: str
  a: str  # what `factor` matches for the random factor
  b: str  # what `factor` matches for the factor that starts at zero
  a_rank: int  # the rank axis of the leaf
  b_rank: int
  # Axes of scanned layers or experts, in both leaves. None: every axis before
  # the last two.
  batch_axes: tuple[int, ...] | None = None
  # The batch axes of factor b, in the same order, if they differ from a's.
  b_batch_axes: tuple[int, ...] | None = None
  # The numbers of axes (of a, of b) that this layout is for. None: any.
  ndims: tuple[tuple[int, int], ...] | None = None

  @property
  def a_axes(self) -> 'FactorAxes':
    """The rank and batch axes of factor a."""
    return FactorAxes(self.a_rank, self.batch_axes)

  @property
  def b_axes(self) -> 'FactorAxes':
    """The rank and batch axes of factor b."""
    elsewhere = self.b_batch_axes is not None
    return FactorAxes(
      self.b_rank, self.b_batch_axes if elsewhere else self.batch_axes
    )


class FactorAxes(NamedTuple):
  """The rank axis and the batch axes of a leaf; see `LoraLayout`."""

  rank: int
  batch: tuple[int, ...] | None

  def split(self, ndim: int) -> tuple[list[int], list[int], list[int]] | None:
    """(batch axes, other axes, [rank axis]), or None if `ndim` does not fit."""
    batch = tuple(range(ndim - 2)) if self.batch is None else self.batch
    batch = [i % ndim if -ndim <= i < ndim else ndim for i in batch]
    rank = self.rank % ndim if -ndim <= self.rank < ndim else -1
    rest = [i for i in range(ndim) if i not in batch and i != rank]
    if rank < 0 or rank in batch or not rest or any(i >= ndim for i in batch):
      return None
    return batch, rest, [rank]

  def rank_in_front(self, ndim: int) -> bool:
    """Whether the rank axis is before the last matrix axis of the leaf."""
    _, rest, (rank,) = self.split(ndim)
    return rest[-1] > rank


_LORA = r'(?:(?P<module>.*)/)?lora_(?P<factor>[ab])'
_QWIX = r'(?P<module>.*)_lora_(?P<factor>[ab])'
_PEFT = (
  r'(?:(?P<module>.*)[./])?lora_(?P<factor>[AB])'
  r'(?:[./](?!weight)(?P<adapter>[^./]+))?(?:[./]weight)?'
)
_KERAS = (
  r'(?:(?P<module>.*)/)?lora_(?P<weight>kernel|embeddings)_(?P<factor>[ab])'
)
_AXLEARN = r'(?:(?P<module>.*)/)?lora_(?P<factor>down|up)/weight'
_LEVANTER = r'(?:(?P<module>.*)/)?lora/lora_(?P<factor>[AB])/weight(?:/0)?'
_PLAIN = r'(?:(?P<module>.*)/)?(?P<factor>[ab])'

# This project's own models, flax.nnx.LoRA and LoRALinear: lora_a (in, rank),
# lora_b (rank, out), with the axes of scanned or vmapped layers in front.
FLAX = LoraLayout('FLAX', _LORA, 'a', 'b', -1, -2)
# qwix, tunix: kernel_lora_a (in..., rank), kernel_lora_b (rank, out...).
QWIX = LoraLayout('QWIX', _QWIX, 'a', 'b', -1, 0, ())
# The same under nn.scan with layers on axis 0: (L, in, rank), (L, rank, out).
QWIX_SCANNED_0 = LoraLayout('QWIX_SCANNED_0', _QWIX, 'a', 'b', -1, 1, (0,))
# ... and on axis 1, as in MaxText and T5X: (in, L, rank), (rank, L, out).
QWIX_SCANNED_1 = LoraLayout('QWIX_SCANNED_1', _QWIX, 'a', 'b', -1, 0, (1,))
# Batched products, such as those of experts, inside nn.scan: (L, E, in, rank),
# (L, E, rank, out), with L or E first. (An einsum has one factor b for all
# experts and is QWIX: a (E, in, rank), b (rank, out).)
QWIX_BATCHED = LoraLayout(
  'QWIX_BATCHED', _QWIX, 'a', 'b', -1, -2, ndims=((4, 4), (5, 5))
)
# gemma.peft: lora/a (in..., rank), lora/b (rank, out...).
GEMMA = LoraLayout(
  'GEMMA', r'(?:(?P<module>.*)/)?lora/(?P<factor>[ab])', 'a', 'b', -1, 0, ()
)
# Hugging Face PEFT, nested or flat with dots: lora_A.weight (rank, in),
# lora_B.weight (out, rank).
PEFT = LoraLayout('PEFT', _PEFT, 'A', 'B', -2, -1)
# SkyRL: lora_A (adapters, in, rank), lora_B (adapters, rank, out). Experts add
# an axis before the last two, stacked layers one at the front.
SKYRL = LoraLayout(
  'SKYRL', _PEFT, 'A', 'B', -1, -2, ndims=((3, 3), (4, 4), (5, 5))
)
# PEFT's embeddings start with A at zero: lora_embedding_A (rank, vocabulary),
# lora_embedding_B (dim, rank).
PEFT_EMBEDDING = LoraLayout(
  'PEFT_EMBEDDING', _PEFT.replace('lora_', 'lora_embedding_'), 'B', 'A', -1, -2
)
# axlearn: lora_down/weight (in, rank), lora_up/weight (rank, out).
AXLEARN = LoraLayout('AXLEARN', _AXLEARN, 'down', 'up', -1, -2)
# axlearn's fused query, key and value: (in, 3, rank), (3, rank, heads, dim).
AXLEARN_QKV = LoraLayout(
  'AXLEARN_QKV', _AXLEARN, 'down', 'up', -1, 1, (1,), (0,), ((3, 4),)
)
# axlearn's attention output: (rank, heads, dim), (rank, out).
AXLEARN_OUTPUT = LoraLayout(
  'AXLEARN_OUTPUT', _AXLEARN, 'down', 'up', 0, 0, (), ndims=((3, 2),)
)
# The two above inside a Repeat, which puts the axis of the layers in front.
AXLEARN_QKV_REPEATED = AXLEARN_QKV._replace(
  name='AXLEARN_QKV_REPEATED',
  b_rank=2,
  batch_axes=(0, 2),
  b_batch_axes=(0, 1),
  ndims=((4, 5),),
)
AXLEARN_OUTPUT_REPEATED = AXLEARN_OUTPUT._replace(
  name='AXLEARN_OUTPUT_REPEATED',
  a_rank=1,
  b_rank=1,
  batch_axes=(0,),
  ndims=((4, 3),),
)
# keras and keras-hub, by `variable.path`: lora_kernel_a (kernel[:-1]..., rank),
# lora_kernel_b (rank, kernel[-1]); embeddings likewise.
KERAS = LoraLayout('KERAS', _KERAS, 'a', 'b', -1, 0, ())
# levanter: lora_A.weight (rank, in...), lora_B.weight (out..., rank); under a
# Stacked module with the layer axis in front. Neither factor starts at zero.
LEVANTER = LoraLayout(
  'LEVANTER', r'(?!.*\bstacked/)' + _LEVANTER, 'A', 'B', 0, -1, ()
)
LEVANTER_STACKED = LoraLayout(
  'LEVANTER_STACKED', r'(?=.*\bstacked/)' + _LEVANTER, 'A', 'B', 1, -1, (0,)
)
# lorax: a (rank, out) and b (in, rank), b zero. Not in AUTO: the pair of a
# square weight looks like PLAIN. lorax itself runs with no version of jax that
# this package supports; the layout is meant for its forks.
LORAX = LoraLayout('LORAX', _PLAIN, 'a', 'b', -2, -1)
# {'a': (in, rank), 'b': (rank, out)}, batch axes in front.
PLAIN = LoraLayout('PLAIN', _PLAIN, 'a', 'b', -1, -2)
# {'a': (in, rank), 'b': (out, rank)}, batch axes in front.
TALL = LoraLayout('TALL', _PLAIN, 'a', 'b', -1, -1)


class _Automatic(tuple):
  """The known layouts, with a short repr for use as a default in signatures."""

  __slots__ = ()

  def __repr__(self) -> str:
    return 'lora_opt.AUTO'


# The path decides first, so a tree of one library is never read as another's.
# Layouts with the same path (qwix scanned or not) are told apart by shape. If
# more than one layout still fits, an error names them. Exception: if QWIX and
# QWIX_SCANNED_1 both fit, the second is taken: QWIX fits whenever it does.
AUTO = _Automatic(
  (
    FLAX,
    QWIX,
    QWIX_SCANNED_0,
    QWIX_SCANNED_1,
    QWIX_BATCHED,
    GEMMA,
    PEFT,
    SKYRL,
    PEFT_EMBEDDING,
    AXLEARN,
    AXLEARN_QKV,
    AXLEARN_OUTPUT,
    AXLEARN_QKV_REPEATED,
    AXLEARN_OUTPUT_REPEATED,
    KERAS,
    LEVANTER,
    LEVANTER_STACKED,
    PLAIN,
    TALL,
  )
)
# Names as short as 'a' and 'b' count only if no library's names are found.
LAST_RESORT = frozenset({_PLAIN})

Layouts = LoraLayout | Sequence[LoraLayout]
