"""Settings for every test. Warnings are errors (pyproject.toml)."""

import os

# Before jax is imported: tests must not depend on the machine's accelerator.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
