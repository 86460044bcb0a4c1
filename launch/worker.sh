#!/usr/bin/env bash
# One process of a run on a cluster; schedulers start it on every machine.
#   MODEL_DIR=folder launch/worker.sh FLAG ...
# Exits with 0 once the run is finished, and with 75 ("try again") if it was
# stopped before, wherever it was: a run that has started says so itself, and
# one that SIGTERM met before that, or that lost the others in stopping, does
# not, so whatever ends badly after a signal counts as stopped.
#   MODEL_DIR=folder   one folder that all processes see
#   PYTHON=program     instead of the project's .venv/bin/python
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [ "${1:-}" = --help ]; then
  usage && exit
fi
training "$@"

# A shell passes no signal on by itself, and as the first process of a
# container it would not even end.
signalled=0 stopped=0
"${command[@]}" &
child=$!
trap 'signalled=1; stopped=1; kill -TERM "$child" 2> /dev/null || true' TERM INT
while true; do
  code=0
  wait "$child" || code=$?
  [ "$signalled" = 1 ] || break
  signalled=0 # the signal ended the wait, not the child
done

if [ "$code" = 75 ] || { [ "$code" != 0 ] && [ "$stopped" = 1 ]; }; then
  echo 'worker: stopped before the end of the run; start it again' >&2
  exit 75
fi
exit "$code"
