#!/usr/bin/env bash
# Installs each library that LoRA pairs come from into an environment of its
# own (they do not agree on versions) and runs there what the default tests
# know only from records: the layout of its tree against its own forward pass,
# and the script that trains with it. About 10 GB of packages.
#   launch/integrations.sh [NAME ...]   tunix gemma keras levanter lorax maxtext
#                                       skyrl axlearn peft lm_eval trackers buckets
#   PYTHON312=python3.12   for gemma, MaxText and SkyRL, which need it
#   ENVIRONMENTS=folder    where the environments go (default .venv-integrations)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
python312=${PYTHON312:-python3.12}
environments=${ENVIRONMENTS:-.venv-integrations}

# environment NAME INTERPRETER PACKAGE...: makes it, once.
environment() {
  local name=$1 interpreter=$2
  shift 2
  local folder=$environments/$name
  if [ "$(cat "$folder/.packages" 2> /dev/null)" = "$*" ]; then
    return
  fi
  echo "integrations: installing $name" >&2
  "$interpreter" -m venv --clear "$folder"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
  echo "$*" > "$folder/.packages"
}

# layouts NAME MODULE: what is read must be what the tests have on record.
layouts() {
  "$environments/$1/bin/python" -m "tests.integrations.layouts.$2" "${@:3}"
}

check() {
  layouts "$1" check "$2" --expect tests/golden/layouts.json
}

run() {
  "$environments/$1/bin/python" -m "experiments.libraries.$2"
}

jax_stack=(jax==0.10.2 flax==0.12.8 optax==0.2.8 orbax-checkpoint==0.12.8)

tunix() {
  environment tunix "$python" google-tunix==0.1.7 qwix==0.1.8 "${jax_stack[@]}"
  check tunix tunix_gemma
  check tunix tunix_moe
  run tunix nnx_optimizer
  run tunix tunix_trainer
}

gemma() {
  # The last is pinned because pip else tries its versions for many minutes.
  environment gemma "$python312" gemma==4.0.1 "sentencepiece<0.2.2" \
    "${jax_stack[@]}" google-cloud-aiplatform==2.7.0
  check gemma gemma_linen
  run gemma gemma_linen
}

keras() {
  environment keras "$python" keras-hub==0.32.0 jax==0.10.2 optax==0.2.8
  check keras keras_gemma
}

levanter() {
  # The releases of both want an older jax than this package.
  environment levanter "$python" levanter==1.2.dev1644 haliax==1.4.dev453 \
    chex gitpython jax==0.10.2
  check levanter levanter_gpt2
}

lorax() {
  environment lorax "$python" jax-lorax==0.3.1 'plum-dispatch<2.6' \
    'jax<0.4.36' 'jaxlib<0.4.36'
  layouts lorax lorax_dict --expect tests/golden/layouts.json
}

maxtext() {
  # Its extras are for accelerators; this is what its decoder imports.
  environment maxtext "$python312" maxtext==0.2.5 google-tunix==0.1.7 \
    qwix==0.1.8 tokamax==0.0.17 jax==0.12.0.1 flax==0.12.12 optax==0.2.8 \
    absl-py aqtp cloud-tpu-diagnostics drjax grain ml-goodput-measurement \
    omegaconf pathwaysutils pydantic sentencepiece tensorboardX \
    tensorflow-datasets tiktoken transformers
  check maxtext maxtext_decoder
}

skyrl() {
  # Alone: what it needs for training on GPUs does not matter here.
  environment skyrl "$python312" "${jax_stack[@]}" transformers==5.8.0 \
    safetensors tokenizers pydantic cloudpathlib zstandard rich
  "$environments/skyrl/bin/python" -m pip install --quiet --no-deps skyrl==0.4.0
  check skyrl skyrl_qwen3
}

axlearn() {
  # Alone: its own requirements bring TensorFlow.
  environment axlearn "$python" absl-py attrs toml typing-extensions \
    jax==0.4.21 jaxlib==0.4.21 flax==0.7.4 optax==0.1.7 'chex<0.1.81' \
    'numpy<1.24' 'scipy<1.12' tensorstore
  "$environments/axlearn/bin/python" -m pip install --quiet --no-deps \
    axlearn==0.0.1.post20240213000026
  layouts axlearn axlearn_layers --expect tests/golden/layouts.json
}

peft() {
  environment peft "$python" torch==2.13.0 transformers==5.23.0 peft==0.21.2 \
    safetensors jax==0.10.2 optax==0.2.8
  check peft peft_torch
  run peft peft_in_out
}

lm_eval() {
  environment lm_eval "$python" -c constraints.txt lm-eval==0.4.13 -e '.[test,torch]'
  "$environments/lm_eval/bin/python" -m pytest -n 0 tests/evaluation \
    -k lm_eval
}

# Weights & Biases, MLflow and trackio, offline, each read back.
trackers() {
  # Two pins that MLflow and trackio do not agree with.
  mkdir -p "$environments"
  grep -v -e '^pillow==' -e '^importlib_metadata==' constraints.txt \
    > "$environments/trackers.txt"
  environment trackers "$python" -c "$environments/trackers.txt" \
    mlflow-skinny==3.17.2 trackio==0.43.0 wandb==0.31.0 \
    -e '.[test,wandb,mlflow,trackio]'
  "$environments/trackers/bin/python" -m pytest -n 0 \
    tests/integrations/trackers_test.py
}

# Emulators of Google Cloud Storage and S3 on loopback.
buckets() {
  environment buckets "$python" -c constraints.txt -e '.[test,buckets]' \
    gcsfs==2026.10.1 s3fs==2026.9.0 'moto[server]==5.2.5' \
    gcp-storage-emulator==2026.7.19
  "$environments/buckets/bin/python" -m pytest -n 0 tests/buckets
}

known=(tunix gemma keras levanter lorax maxtext skyrl axlearn peft lm_eval
  trackers buckets)
names=("${@:-${known[@]}}")
for name in "${names[@]}"; do
  if [[ " ${known[*]} " != *" $name "* ]]; then
    echo "integrations: no library $name; there are ${known[*]}" >&2
    exit 2
  fi
done
for name in "${names[@]}"; do
  echo "== $name"
  "$name"
done
echo "integrations: all of ${names[*]} passed"
