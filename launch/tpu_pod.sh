#!/usr/bin/env bash
# Runs on all workers of a Cloud TPU slice, by gcloud over ssh.
#   TPU=name ZONE=zone launch/tpu_pod.sh [--dry_run] COMMAND
# COMMANDs, in the order of use:
#   copy            copies this project to ~/lora_opt of every worker
#   setup           installs it there, with JAX for TPU and the clients of buckets
#   run FLAG ...    starts the run everywhere, in the background; needs MODEL_DIR
#   log             follows what the first worker says
#   stop            SIGTERM: all workers save the same step and end
# The same `run` again goes on from the newest checkpoint.
#   TPU, ZONE          name and zone of the slice
#   PROJECT            the Google Cloud project, if not gcloud's default
#   MODEL_DIR=folder   a folder that all workers see: gs://bucket/run, a mounted
#                      bucket or a share
#   --dry_run          only prints the commands
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dry_run=0
if [ "${1:-}" = --dry_run ]; then
  dry_run=1
  shift
fi
if [ "${1:-}" = --help ]; then
  usage && exit
fi
name='^[a-z0-9]([a-z0-9.:-]*[a-z0-9])?$' # neither an option nor a path
if [[ ! ${TPU:-} =~ $name ]] || [[ ! ${ZONE:-} =~ $name ]]; then
  mistake 'set TPU=name and ZONE=zone'
fi
if [[ ! ${PROJECT:-none} =~ $name ]]; then
  mistake "PROJECT=$PROJECT is not the name of a project"
fi
where=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})

# on WORKER COMMAND: runs a shell command there; WORKER may be all.
on() {
  run gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --worker="$1" \
    --command="$2"
}

# What the copy is packed into, removed in the end.
made=
remove_made() {
  [ -z "$made" ] || rm -rf -- "$made"
}

copy() {
  local archive=lora_opt.tar.gz folder=/tmp
  if [ "$dry_run" = 0 ]; then
    trap remove_made EXIT
    made=$(mktemp -d)
    folder=$made
  fi
  run tar -C "$project" --exclude='./.git' --exclude='./.venv*' \
    --exclude=./runs --exclude=__pycache__ -czf "$folder/$archive" .
  run gcloud compute tpus tpu-vm scp "$folder/$archive" "$TPU:" \
    "${where[@]}" --worker=all
  on all "mkdir -p lora_opt && tar -C lora_opt -xzf $archive"
}

setup() {
  on all "cd lora_opt && WITH_BUCKETS=1 bash launch/setup.sh && \
.venv/bin/python -m pip install --quiet --constraint constraints.txt 'jax[tpu]'"
}

start() {
  local flags
  [ -n "${MODEL_DIR:-}" ] || mistake 'set MODEL_DIR=folder of the run'
  flags=$(shown --coordinator_address=auto "$@")
  # Its own session, so that it outlives the connection.
  on all "cd lora_opt && { MODEL_DIR=$(shown "$MODEL_DIR") setsid nohup bash \
launch/worker.sh $flags > run.log 2>&1 < /dev/null & echo \$! > run.pid; }"
}

stop() {
  # shellcheck disable=SC2016  # the shell over there is to read the file
  on all 'kill -TERM "$(cat lora_opt/run.pid)"'
}

task=${1:-}
[ $# -eq 0 ] || shift
case $task in
  copy) copy ;;
  setup) setup ;;
  run) start "$@" ;;
  log) on 0 'tail -n 100 -f lora_opt/run.log' ;;
  stop) stop ;;
  *) mistake "give one of copy, setup, run, log and stop, not '$task'" ;;
esac
