#!/usr/bin/env bash
# Sets everything up and runs all tests; further arguments go to pytest.
#   -m long                    only the tests that take minutes each: real
#                              processes, every mesh, injected faults
#   --integrations [NAME ...]  instead installs the libraries that LoRA pairs
#                              come from and runs what needs them: see
#                              launch/integrations.sh
#   CONSTRAINTS=file           another set of packages: constraints-newest.txt, or
#                              empty for what pip resolves today; see setup.sh
#   WITH_TORCH=1               also installs torch, transformers and peft, and
#                              compares with them live, not with golden numbers
#   WITH_TPU=1                 also installs the compiler of TPUs (140 MB, Linux on
#                              x86-64 alone), which needs none, and asks it; JAX
#                              then says at each start that it finds no TPU
#   WITH_GPU=1                 also installs that of GPUs (400 MB), for tests
#                              that are long
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = --integrations ]; then
  exec bash launch/integrations.sh "${@:2}"
fi
bash launch/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Neighbouring tests share fixtures and compiled programs: keep them together.
exec .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist worksteal "$@"
