#!/usr/bin/env bash
# What launch/slurm.sh submits: runs on the first machine of the job.
#   MODEL_DIR=folder slurm_job.sh PROJECT FLAG ...
# In a job array, the run of the sweep whose number the task has:
#   SWEEP=folder slurm_job.sh PROJECT
set -euo pipefail
project=$1 # sbatch runs a copy of this file that lies elsewhere
shift

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  MODEL_DIR=$SWEEP/$(printf %04d "$SLURM_ARRAY_TASK_ID")
  export MODEL_DIR
  mapfile -t flags < "$MODEL_DIR/flags.txt"
  set -- "${flags[@]}"
fi
logs=$MODEL_DIR/logs
mkdir -p "$logs"

# A process that ends alone gives the others a minute to see it and end too
# (they do after half of it); killing them at once would lose what they say.
code=0
srun --kill-on-bad-exit=0 --wait=60 --open-mode=append \
  --output="${logs//%/%%}/slurm-%j.%t.log" \
  bash "$project/launch/worker.sh" --coordinator_address=auto "$@" || code=$?
if [ "$code" = 75 ]; then
  echo 'slurm: the run was stopped before its end; queued again'
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
