"""Sizes that contradict each other are refused."""

import pytest

from lora_opt.models.random_model import random_model


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_layers': 0}, 'num_layers: expected a whole number from 1'),
    ({'num_layers': 10**9}, 'num_layers: expected a whole number from 1'),
    ({'num_layers': 2.0}, 'num_layers: expected a whole number.* found 2.0'),
    ({'num_heads': True}, 'num_heads: expected a whole number.* found True'),
    ({'norm_eps': -1.0}, 'norm_eps: expected a finite number .* found -1.0'),
    ({'norm_eps': float('nan')}, 'norm_eps: expected a finite number'),
    ({'rope_theta': 0}, 'rope_theta: expected a finite number'),
    ({'rope_divisors': (0.0,) * 4}, 'rope_divisors: expected a finite num'),
    ({'tie_embeddings': 'false'}, 'tie_embeddings: expected true or false'),
    ({'activation': ['relu']}, 'activation: expected a text'),
    ({'num_kv_heads': 3}, 'num_heads=4 must be a multiple of num_kv_heads=3'),
    ({'head_dim': 7}, 'head_dim=7 must be even'),
    ({'rope_divisors': (1.0,)}, 'rope_divisors has 1 entries.* = 4 or none'),
    ({'rotary_dim': 5}, 'rotary_dim=5 must be even and at most head_dim=8'),
    ({'rotary_dim': 10}, 'rotary_dim=10 must be even and at most head_dim=8'),
    ({'unrotated_layers': (True,)}, 'unrotated_layers has 1 entries'),
    ({'long_rope_divisors': (1.0,) * 4}, 'need rope_divisors for short'),
    ({'dynamic_rope': 2.0}, 'rope_context=None belongs to'),
    ({'rope_context': 8}, 'rope_context=8 belongs to'),
    ({'qk_norm': True, 'wide_qk_norm': True}, 'exclude each other'),
    ({'gated_mlp': False, 'fused_gate': True}, 'fused_gate needs gated_mlp'),
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
