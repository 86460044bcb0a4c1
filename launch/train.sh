#!/usr/bin/env bash
# Trains on this machine, in one process, on all of its devices.
#   MODEL_DIR=folder launch/train.sh [--dry_run] [--] FLAG ...
# FLAGs are those of `python -m lora_opt.main`, such as
#   --gin_file=configs/runs/quickstart.gin --gin.TRAIN_STEPS=100
# The same command again goes on from the newest checkpoint.
#   MODEL_DIR=folder   where the run leaves everything
#   PYTHON=program     instead of the project's .venv/bin/python
#   --dry_run          only prints the command (`-- --dry_run` is passed on: it
#                      checks the configuration, and prints that)
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dry_run=0
while [ $# -gt 0 ]; do
  case $1 in
    --help) usage && exit ;;
    --dry_run) dry_run=1 && shift ;;
    --) shift && break ;;
    *) break ;;
  esac
done
training "$@"
# Huge pages for what the allocator hands out, see launch/quickstart.sh.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
if [ "$dry_run" = 1 ]; then
  shown "${command[@]}"
else
  exec "${command[@]}"
fi
