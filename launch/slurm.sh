#!/usr/bin/env bash
# Submits a run to SLURM.
#   MODEL_DIR=folder launch/slurm.sh [--dry_run] [SBATCH_OPTION ...] -- FLAG ...
# for example on two machines of eight GPUs; JAX wants a task for each GPU:
#   MODEL_DIR=runs/a launch/slurm.sh --nodes=2 --gpus-per-node=8 \
#     --ntasks-per-node=8 --time=8:00:00 -- \
#     --gin_file=configs/runs/quickstart.gin --gin.BATCH_SIZE=16
# Three minutes before its time is over, or when it is preempted, the run saves;
# it is queued again until it is finished. Logs are in MODEL_DIR/logs.
#   MODEL_DIR=folder   where the run leaves everything; all machines see it
#   PYTHON=program     instead of the project's .venv/bin/python
#   SWEEP=folder       instead of MODEL_DIR, with --array=NUMBERS and without
#                      FLAGs: the runs of these numbers, see launch/sweep.py
#   --dry_run          only prints the command
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dry_run=0
options=()
while [ $# -gt 0 ]; do
  case $1 in
    --help) usage && exit ;;
    --dry_run) dry_run=1 ;;
    --) break ;;
    *) options+=("$1") ;;
  esac
  shift
done
[ "${1:-}" = -- ] || mistake 'separate the options of sbatch and the flags by --'
shift

if [ -n "${SWEEP:-}" ]; then
  export SWEEP
  setting=SWEEP=$SWEEP
  logs=$SWEEP/logs
  file=slurm-%A-%a.log
else
  [ -n "${MODEL_DIR:-}" ] || mistake 'set MODEL_DIR=folder of the run'
  [[ $MODEL_DIR != *://* ]] || mistake "MODEL_DIR=$MODEL_DIR: the logs of the \
jobs are kept in MODEL_DIR/logs, which must be a folder that all machines see; \
for a bucket start lora_opt.main by sbatch and srun yourself"
  export MODEL_DIR
  setting=MODEL_DIR=$MODEL_DIR
  logs=$MODEL_DIR/logs
  file=slurm-%j.log
fi
[ "$dry_run" = 1 ] || mkdir -p "$logs" # sbatch does not make it
# Variables reach the job by sbatch's default, --export=ALL.
run env "$setting" sbatch --job-name="$(basename -- "${logs%/logs}")" \
  --output="${logs//%/%%}/$file" --open-mode=append --requeue --signal=TERM@180 \
  ${options[@]+"${options[@]}"} "$project/launch/slurm_job.sh" "$project" "$@"
