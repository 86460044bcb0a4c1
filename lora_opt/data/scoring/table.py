"""How the answers to each data set of reasoning_gym are scored.

Every scorer of reasoning_gym was reviewed, with the code that it calls. Those
in `AS_IT_IS` compare, parse bounded numbers or JSON, or move pieces: nothing in
the answer is executed, and the work is about linear in its length. Those in
`PREPARED` are equally safe once the answer has been checked or changed. `OURS`
replaces scorers that evaluate the answer (with `eval`, or with SymPy, which
uses `eval`), can be made to run forever, or accept NaN as right. A data set
that is not listed here is not scored.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from lora_opt.data.scoring import calculus, lists, logic, polynomials, puzzles

# The version whose scorers were reviewed. Those of another may do anything.
VERSION = '0.1.25'

# These compare texts, ignoring at most case, spaces and line ends.
_TEXTS = """
  ab acre aiw arc_1d base_conversion basic_arithmetic bf binary_alternation
  caesar_cipher circuit_logic color_cube_rotation count_bits count_primes
  course_schedule dice emoji_mystery family_relationships figlet_font gcd
  isomorphic_strings largest_island lcm leg_counting letter_counting
  letter_jumble list_functions mahjong_puzzle manipulate_matrix maze modulo_grid
  needle_haystack number_filtering number_sequence palindrome_generation
  path_star ransom_note rotate_matrix rotten_oranges self_reference
  sentence_reordering simple_equations simple_geometry spell_backward
  string_manipulation string_splitting string_synthesis syllogism tsumego
  word_ladder word_sequence_reversal word_sorting zebra_puzzles
"""
# These parse numbers with int, float or Decimal and compare them.
_NUMBERS = """
  advanced_geometry calendar_arithmetic chain_sum cryptarithm
  decimal_arithmetic decimal_chain_sum fraction_simplification gsm_symbolic
  number_format polynomial_equations pool_matrix power_function
  prime_factorization products rectangle_count time_intervals
"""
# These parse boards, tables and lists, as lines or as JSON, and compare them.
_BOARDS = """
  arc_agi futoshiki game_of_life graph_color group_anagrams kakurasu
  knights_knaves mini_sudoku palindrome_partitioning rearc sudoku survo
"""
# These make moves, one after the other.
_MOVES = """
  jugs knight_swap quantum_lock shortest_path sokoban tower_of_hanoi
"""
AS_IT_IS = frozenset(f'{_TEXTS} {_NUMBERS} {_BOARDS} {_MOVES}'.split())


def _without_nan(answer: str) -> str | None:
  """Rejects 'nan', whose distance from the right number would count as 0."""
  return None if 'nan' in answer.replace(' ', '').lower() else answer


def _small_exponents(answer: str) -> str | None:
  """Rejects 1e999999999 or 1e9_9_9_9_9, which a fraction would write out."""
  plain = len(answer) <= 100 and answer.isascii() and '_' not in answer
  large = re.search(r'[eE][-+]?0*[1-9]\d{3}', answer)
  return answer if plain and not large else None


def _few_turns(answer: str) -> str | None:
  """Rejects more than 1000 turns; F9999 is 9999 turns of a cube's side."""
  counts = [re.fullmatch(r'[^\d]*(\d*)', turn) for turn in answer.split()]
  turns = sum(int(found[1][:4] or 1) for found in counts if found)
  return answer if turns <= 1000 else None


def _short_moves(answer: str) -> str:
  """Limits moves to 6 squares, the board's side: pieces stop at its edge."""
  return re.sub(r'(?<=[A-Z][+-])0*(\d*)', _at_most_six, answer)


def _at_most_six(found: re.Match) -> str:
  return '6' if len(found[1]) > 1 else found[1] or '0'


def _up_to(length: int) -> Callable[[str], str | None]:
  return lambda answer: answer if len(answer) <= length else None


# What reasoning_gym's scorer is given instead of the answer; None scores 0.
PREPARED: Mapping[str, Callable[[str], str | None]] = {
  'boxnet': _up_to(2000),  # its regular expression is quadratic
  'coin_flip': _small_exponents,
  'complex_arithmetic': _without_nan,
  'rubiks_cube': _few_turns,
  'rush_hour': _short_moves,
}


def _hexadecimal(answer: str, row: Mapping[str, Any]) -> float:
  """1 if the answer is the right whole number, in any base of Python."""
  if len(answer) > 300:
    return 0.0
  try:
    return float(int(answer, 0) == int(row['answer'], 0))
  except ValueError:
    return 0.0


OURS: Mapping[str, Callable[[str, Mapping[str, Any]], float]] = {
  'binary_matrix': lists.binary_matrix,
  'bitwise_arithmetic': _hexadecimal,
  'countdown': puzzles.countdown,
  'intermediate_integration': calculus.integration,
  'n_queens': lists.n_queens,
  'number_sorting': lists.number_sorting,
  'polynomial_multiplication': polynomials.multiplied_out,
  'propositional_logic': logic.conclusion,
  'puzzle24': puzzles.puzzle24,
  'simple_integration': calculus.integration,
  'spiral_matrix': lists.spiral_matrix,
  'string_insertion': lists.string_insertion,
}

# Data sets whose answers cannot be scored, and why.
NOT_SCORED: Mapping[str, str] = {
  'game_of_life_halting': 'its scorer gives every answer but none a 1',
}

# Data sets that are not even generated, and why.
NOT_OFFERED: Mapping[str, str] = {
  'codeio': (
    'it executes code that a language model wrote, to make its questions'
  ),
  'composite': (
    'its parts have scorers of their own: make a task of each, and a Mixture '
    'of the tasks'
  ),
}
