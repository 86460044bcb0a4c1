"""The config.json of published encoders, as their folders have it."""

_BERT = {
  'architectures': ['BertForMaskedLM'],
  'attention_probs_dropout_prob': 0.1,
  'gradient_checkpointing': False,
  'hidden_act': 'gelu',
  'hidden_dropout_prob': 0.1,
  'hidden_size': 768,
  'initializer_range': 0.02,
  'intermediate_size': 3072,
  'layer_norm_eps': 1e-12,
  'max_position_embeddings': 512,
  'model_type': 'bert',
  'num_attention_heads': 12,
  'num_hidden_layers': 12,
  'pad_token_id': 0,
  'position_embedding_type': 'absolute',
  'transformers_version': '4.6.0.dev0',
  'type_vocab_size': 2,
  'use_cache': True,
  'vocab_size': 30522,
}
_LARGE = {
  'hidden_size': 1024,
  'intermediate_size': 4096,
  'num_attention_heads': 16,
  'num_hidden_layers': 24,
}
_ROBERTA = {
  'architectures': ['RobertaForMaskedLM'],
  'attention_probs_dropout_prob': 0.1,
  'bos_token_id': 0,
  'eos_token_id': 2,
  'hidden_act': 'gelu',
  'hidden_dropout_prob': 0.1,
  'hidden_size': 768,
  'initializer_range': 0.02,
  'intermediate_size': 3072,
  'layer_norm_eps': 1e-05,
  'max_position_embeddings': 514,
  'model_type': 'roberta',
  'num_attention_heads': 12,
  'num_hidden_layers': 12,
  'pad_token_id': 1,
  'type_vocab_size': 1,
  'vocab_size': 50265,
}
_DEBERTA = {
  'model_type': 'deberta-v2',
  'attention_probs_dropout_prob': 0.1,
  'hidden_act': 'gelu',
  'hidden_dropout_prob': 0.1,
  'hidden_size': 768,
  'initializer_range': 0.02,
  'intermediate_size': 3072,
  'max_position_embeddings': 512,
  'relative_attention': True,
  'position_buckets': 256,
  'norm_rel_ebd': 'layer_norm',
  'share_att_key': True,
  'pos_att_type': 'p2c|c2p',
  'layer_norm_eps': 1e-7,
  'max_relative_positions': -1,
  'position_biased_input': False,
  'num_attention_heads': 12,
  'num_hidden_layers': 12,
  'type_vocab_size': 0,
  'vocab_size': 128100,
}

# Name: the config, and the parameters with transformers' head of two labels.
PUBLISHED = {
  'bert-base-uncased': (_BERT, 109_483_778),
  'bert-large-uncased': (_BERT | _LARGE, 335_143_938),
  'MiniLM-L6-H384-uncased': (
    _BERT
    | {'hidden_size': 384, 'intermediate_size': 1536}
    | {'num_hidden_layers': 6},
    22_713_986,
  ),
  'roberta-base': (_ROBERTA, 124_647_170),
  'roberta-large': (_ROBERTA | _LARGE, 355_361_794),
  'deberta-v3-small': (_DEBERTA | {'num_hidden_layers': 6}, 141_896_450),
  'deberta-v3-base': (_DEBERTA, 184_423_682),
  'deberta-v3-large': (_DEBERTA | _LARGE, 435_063_810),
}
