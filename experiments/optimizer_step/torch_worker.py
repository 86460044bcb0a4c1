"""Times steps of a PyTorch optimizer on request; needs a Python with torch.

`torch_worker METHOD PATH LAYERS RANK FAN_IN,FAN_OUT...` answers `state` with
the bytes of the state and `step` with the seconds of a step. PATH is a checkout
of the authors' repository, or - for torch's own AdamW.
"""

import sys
import time

import torch

from experiments.worker import serve


def make_pairs(layers, rank, shapes):
  """[(A, B)] as peft keeps them: (rank, fan in), (fan out, rank)."""
  torch.manual_seed(0)
  pairs = []
  for _ in range(layers):
    for fan_in, fan_out in shapes:
      a = torch.randn(rank, fan_in) * fan_in**-0.5
      b = torch.randn(fan_out, rank) * rank**-0.5
      pairs.append((torch.nn.Parameter(a), torch.nn.Parameter(b)))
  return pairs


def adamw(pairs):
  return torch.optim.AdamW(
    [x for pair in pairs for x in pair], 1e-4, fused=True
  )


def lora_rite(pairs):
  from lora_rite import LoRARite

  parameters = [x for pair in pairs for x in pair]
  return LoRARite(parameters, betas=(0.9, 0.999), lr=1e-4)


def reflora(pairs):
  """The authors' preconditioning of the gradients before a fused AdamW."""
  from reflora.reflora import Refactorer

  optimizer = adamw(pairs)
  # Skip the constructor: it only searches a peft model for the pairs, which
  # are known here.
  refactorer = Refactorer.__new__(Refactorer)
  refactorer.lora_weights = pairs
  refactorer.use_scalar = False
  refactorer.warmup_steps = refactorer.skip_steps = 0
  refactorer.interval = 1
  refactorer.integrate_into_optimizer(optimizer)
  return optimizer


def state_bytes(optimizer) -> int:
  def sizes(x):
    if isinstance(x, torch.Tensor):
      return x.nbytes
    if isinstance(x, dict):
      return sum(map(sizes, x.values()))
    return sum(map(sizes, vars(x).values())) if hasattr(x, '__dict__') else 0

  return sizes(dict(optimizer.state))


def main(method, path, layers, rank, *shapes):
  if path != '-':
    sys.path.insert(0, path)
  shapes = [tuple(map(int, shape.split(','))) for shape in shapes]
  pairs = make_pairs(int(layers), int(rank), shapes)
  optimizer = globals()[method](pairs)
  gradients = [0.01 * torch.randn_like(x) for pair in pairs for x in pair]

  def step():
    # Some optimizers write into the gradients.
    for x, g in zip((x for p in pairs for x in p), gradients, strict=True):
      x.grad = g.clone()
    start = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - start

  step()
  serve(lambda line: step() if line == 'step' else state_bytes(optimizer))


if __name__ == '__main__':
  main(*sys.argv[1:])
