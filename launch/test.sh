#!/usr/bin/env bash
# Sets everything up and runs all tests; further arguments go to pytest.
#   -m long                    only the tests that take minutes each: real
#                              processes, every mesh, injected faults
#   --integrations [NAME ...]  instead installs the libraries that LoRA pairs
#                              come from and runs what needs them: see
#                              launch/integrations.sh
#   WITH_TORCH=1               also installs torch, transformers and peft, and
#                              compares with them live, not with golden numbers
#   WITH_TPU=0                 without the compiler of TPUs (140 MB), which comes
#                              for Linux on x86-64 alone
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = --integrations ]; then
  exec bash launch/integrations.sh "${@:2}"
fi
if [ "$(uname -sm)" != 'Linux x86_64' ]; then
  WITH_TPU=0
fi
WITH_TPU=${WITH_TPU:-1} bash launch/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Neighbouring tests share fixtures and compiled programs: keep them together.
exec .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist worksteal "$@"
