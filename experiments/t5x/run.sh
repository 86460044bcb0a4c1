#!/usr/bin/env bash
# Pretrains a small T5 with T5X, fine-tunes it with LoRA and lora_opt, and goes
# on once more from the LoRA checkpoint. Needs a checkout of T5X and a Python
# with its requirements; see README.md.
set -euo pipefail
t5x=$(realpath "${1:?usage: run.sh T5X_CHECKOUT PYTHON [OUTPUT_FOLDER]}")
python=$(realpath -s "${2:?usage: run.sh T5X_CHECKOUT PYTHON [OUTPUT_FOLDER]}")
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
out=$(realpath -m "${3:-runs/t5x}")
export PYTHONPATH="$t5x:$here:$here/stubs:$here/../.."
export TF_CPP_MIN_LOG_LEVEL=3 JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

run() {
  "$python" -m t5x.train --gin_search_paths="$here,$t5x" "$@"
}

run --gin_file=pretrain.gin --gin.MODEL_DIR="'$out/pretrained'"
checkpoint="'$out/pretrained/checkpoint_1500'"
run --gin_file=lora.gin --gin.MODEL_DIR="'$out/lora'" \
  --gin.INITIAL_CHECKPOINT_PATH="$checkpoint" --gin.TRAIN_STEPS=1700
# The same folder again: T5X restores adapters and optimizer state from it.
run --gin_file=lora.gin --gin.MODEL_DIR="'$out/lora'" \
  --gin.INITIAL_CHECKPOINT_PATH="$checkpoint"
grep -h exact_match -r "$out/lora" --include='*metrics.jsonl' || true
