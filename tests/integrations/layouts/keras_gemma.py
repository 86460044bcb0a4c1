"""keras-hub's Gemma after `enable_lora`, and a keras embedding."""

import os

os.environ['KERAS_BACKEND'] = 'jax'

import keras
import keras_hub
import numpy as np

from tests.integrations.layouts.check import Case


def case(model, inputs, sites):
  def forward(tree):
    trainable = [tree[v.path] for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    return model.stateless_call(trainable, others, inputs)[0]

  tree = {v.path: v.value for v in model.trainable_variables}
  return Case('KERAS', sites, tree, forward)


def gemma():
  backbone = keras_hub.models.GemmaBackbone(
    vocabulary_size=64,
    num_layers=2,
    num_query_heads=4,
    num_key_value_heads=1,
    hidden_dim=32,
    intermediate_dim=48,
    head_dim=8,
  )
  backbone.enable_lora(4)
  inputs = {
    'token_ids': np.arange(8)[None],
    'padding_mask': np.ones((1, 8), int),
  }
  return case(backbone, inputs, 4)


def dense_and_embedding():
  model = keras.Sequential(
    [keras.layers.Embedding(10, 8), keras.layers.Dense(6)]
  )
  inputs = np.arange(4)[None]
  model(inputs)
  for layer in model.layers:
    layer.enable_lora(2)
    layer.trainable = True
  model.layers[1].bias.trainable = False
  return case(model, inputs, 2)


CASES = {
  'keras-hub, Gemma': gemma,
  'keras, Embedding and Dense': dense_and_embedding,
}
