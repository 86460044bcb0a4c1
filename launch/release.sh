#!/usr/bin/env bash
# Makes what a release uploads, dist/, and tries it as who gets it will: in bare
# environments, from another folder. Takes the packages from pip's index.
#   launch/release.sh --gin.TRAIN_STEPS=4   what is further said goes to the
#                                           quickstart, here to shorten it
#   PYTHON=python3.12   another interpreter than python3
#   CONSTRAINTS=file    pins, such as constraints.txt; without it the quickstart
#                       has what pip resolves today, as who gets it will
#   ENVIRONMENTS=folder where the environments go (default one that is removed)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
environments=$(realpath "${ENVIRONMENTS:-$(mktemp -d)}")
if [ -z "${ENVIRONMENTS:-}" ]; then
  trap 'rm -rf "$environments"' EXIT
fi
pins=(${CONSTRAINTS:+--constraint "$(realpath "$CONSTRAINTS")"})

# environment NAME PACKAGE...: a new one with these alone.
environment() {
  echo "== environment $1: ${*:2}"
  "$python" -m venv --clear "$environments/$1"
  "$environments/$1/bin/python" -m pip install --quiet \
    --disable-pip-version-check "${pins[@]}" "${@:2}"
}

environment build build twine
rm -f dist/lora_opt-*
"$environments/build/bin/python" -m build --outdir dist
"$environments/build/bin/python" -m twine check --strict dist/lora_opt-*
wheel=$(realpath dist/lora_opt-*.whl)

rm -rf "$environments/elsewhere"
mkdir "$environments/elsewhere"
cd "$environments/elsewhere"
environment library "$wheel"
"$environments/library/bin/python" - << 'END'
import importlib.metadata
import sys

import jax.numpy as jnp
import lora_opt

assert lora_opt.__file__.startswith(sys.prefix), lora_opt.__file__
params = {'q': {'lora_a': jnp.ones((8, 2)), 'lora_b': jnp.zeros((2, 4))}}
optimizer = lora_opt.lora_rite(1e-3)
_, state = optimizer.update(params, optimizer.init(params), params)
there = sorted({d.name for d in importlib.metadata.distributions()})
print('import lora_opt: works; installed are', *there)
END

environment train "$wheel[train]"
"$environments/train/bin/lora-opt" quickstart "$@"
echo "release: dist/ holds what was tried"
