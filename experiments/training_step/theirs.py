"""The other side: transformers, peft and torch's fused AdamW.

Never imports JAX, whose memory would count. Reads the model from a folder in
Hugging Face's format, and the batches from an .npz file.
"""

import sys
import time

import numpy as np

from experiments.training_step import measured

STARTED = time.perf_counter()
TARGETS = (
  'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'
)  # fmt: skip


def main(folder: str, batches_file: str, dtype: str, threads: str):
  import peft
  import torch
  import transformers

  torch.set_num_threads(int(threads))
  base = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=getattr(torch, dtype), attn_implementation='sdpa'
  )
  config = peft.LoraConfig(
    r=16, lora_alpha=32, target_modules=list(TARGETS), task_type='CAUSAL_LM'
  )
  # Adapters have the type of the base, which is faster.
  model = peft.get_peft_model(base, config, autocast_adapter_dtype=False)
  model.train()
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
  with np.load(batches_file) as arrays:
    batches = [
      {
        'input_ids': torch.tensor(arrays[f'ids_{n}']),
        'labels': torch.tensor(arrays[f'labels_{n}']),
        'attention_mask': torch.tensor(arrays[f'mask_{n}']),
      }
      for n in range(len(arrays.files) // 3)
    ]
  done = 0

  def step():
    nonlocal done
    batch = batches[done % len(batches)]
    done += 1
    started = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    optimizer.step()
    return {
      'loss': float(loss.detach()),
      'seconds': time.perf_counter() - started,
      'tokens': int(batch['attention_mask'].sum()),
    }

  measured.serve_steps(step, STARTED)


if __name__ == '__main__':
  main(*sys.argv[1:])
