#!/usr/bin/env bash
# What the launchers share; they source it.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# usage: prints the comment that heads the script.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# mistake TEXT: says what the user must change, and ends.
mistake() {
  echo "$(basename "$0"): $1; --help says more" >&2
  exit 2
}

# shown COMMAND ...: prints it such that a shell reads it as it is.
shown() {
  local line='' word
  for word in "$@"; do
    printf -v line '%s %q' "$line" "$word"
  done
  echo "${line# }"
}

# run COMMAND ...: runs it; with dry_run=1 only prints it.
run() {
  if [ "${dry_run:-0}" = 1 ]; then
    shown "$@"
  else
    "$@"
  fi
}

# gin_text TEXT: prints it such that gin reads it as text, whatever it is. What
# can be nothing else, such as runs/a, needs no quotes.
gin_text() {
  local text=$1
  if [[ $text =~ ^[A-Za-z0-9_./-]*/[A-Za-z0-9_./-]*$ ]]; then
    printf %s "$text"
    return
  fi
  text=${text//\\/\\\\}
  text=${text//\'/\\\'}
  text=${text//$'\n'/\\n}
  printf "'%s'" "$text"
}

# training FLAG ...: sets `command` to what one process of a run executes.
training() {
  [ -n "${MODEL_DIR:-}" ] || mistake 'set MODEL_DIR=folder of the run'
  # shellcheck disable=SC2034  # for whoever sources this
  command=("${PYTHON:-$project/.venv/bin/python}" -m lora_opt.main
    --run_mode=train "--gin.MODEL_DIR=$(gin_text "$MODEL_DIR")" "$@")
}
