#!/usr/bin/env bash
# The quickstart's run once with each of four optimizer files, one after the other.
#   OUT=folder   where the runs go (default runs/four_optimizers)
# Further arguments go to every run, such as --gin.TRAIN_STEPS=20.
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
out=${OUT:-$project/runs/four_optimizers}
for optimizer in adamw lora_plus reflora lora_rite; do
  echo "== $optimizer"
  MODEL_DIR="$out/$optimizer" bash "$project/launch/quickstart.sh" \
    --gin_file="configs/optimizers/$optimizer.gin" \
    --gin.TASK_FEATURE_LENGTHS="{'targets': 256}" "$@"
done
