"""Runs SentencePiece BPE vocabularies with `tokenizers`."""

from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

SPACE = '▁'
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # GGUF's types


def sentencepiece_core(
  pieces: Sequence[str],
  scores: Sequence[float],
  types: Sequence[int],
  space_prefix: bool,
) -> tokenizers.Tokenizer:
  """Builds the tokenizer of a SentencePiece model of type BPE.

  SentencePiece joins the neighbouring pieces whose union has the best score. A
  list of merges in the order of their unions' scores does the same. Characters
  without a piece are encoded as their bytes.

  Args:
    pieces: The pieces by id.
    scores: Score of each piece; those with higher scores are joined first.
    types: Type of each piece, as GGUF numbers them.
    space_prefix: Whether to read a text as if there were a space before it.

  Returns:
    The tokenizer.

  >>> pieces = ['<unk>', '▁', 'a', 'b', 'ab', '▁ab']
  >>> core = sentencepiece_core(
  ...   pieces, [0, -9, -8, -7, -1, -2], [2, 1, 1, 1, 1, 1], False
  ... )
  >>> core.encode('ab ab').tokens
  ['ab', '▁ab']
  """
  ids = {piece: index for index, piece in enumerate(pieces)}
  unknown = [p for p, t in zip(pieces, types, strict=True) if t == UNKNOWN]
  core = tokenizers.Tokenizer(
    models.BPE(
      vocab=ids,
      merges=_merges(ids, scores, types),
      unk_token=unknown[0] if unknown else None,
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  spaces = [normalizers.Replace(' ', SPACE)]
  if space_prefix:
    spaces.insert(0, normalizers.Prepend(SPACE))
  core.normalizer = normalizers.Sequence(spaces)
  steps = [decoders.Replace(SPACE, ' '), decoders.ByteFallback()]
  steps.append(decoders.Fuse())
  if space_prefix:
    steps.append(decoders.Strip(' ', 1, 0))
  core.decoder = decoders.Sequence(steps)
  by_type = list(zip(pieces, types, strict=True))
  core.add_special_tokens([p for p, t in by_type if t in (CONTROL, UNKNOWN)])
  # Spaces in these pieces are already written as the normalizer writes them.
  core.add_tokens(
    [AddedToken(p, normalized=False) for p, t in by_type if t == USER_DEFINED]
  )
  return core


def _merges(ids, scores, types):
  """The pairs of pieces whose union is a piece, with the best union first."""
  found = []
  for piece, index in ids.items():
    if types[index] not in (NORMAL, USER_DEFINED):
      continue
    for cut in range(1, len(piece)):
      left, right = ids.get(piece[:cut]), ids.get(piece[cut:])
      if left is not None and right is not None:
        found.append((-scores[index], index, left, right))
  found.sort()
  pieces = list(ids)
  return [(pieces[left], pieces[right]) for _, _, left, right in found]
