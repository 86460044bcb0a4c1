"""Sizes that contradict each other are refused."""

import pytest

from lora_opt.models.random_model import random_model


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_layers': 0}, 'num_layers=0 must be at least 1'),
    ({'num_kv_heads': 3}, 'num_heads=4 must be a multiple of num_kv_heads=3'),
    ({'head_dim': 7}, 'head_dim=7 must be even'),
    ({'rope_divisors': (1.0,)}, 'rope_divisors has 1 entries.* = 4 or none'),
    ({'vocab_size': 100}, 'the tokenizer has 262 tokens, the embedding 100'),
    ({'vocab_size': 5000}, 'the tokenizer has 262 tokens, the embedding 5000'),
    ({'dtype': 'float31'}, "dtype='float31' must be one of float32, bf"),
    ({'param_dtype': 'int8'}, "dtype='int8' must be one of float32, bf"),
    ({'remat': 'some'}, "remat='some' must be one of none, projections, full"),
  ],
)
def test_contradictions_are_named(settings, message):
  with pytest.raises(ValueError, match=message):
    random_model(**settings)
