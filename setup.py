"""Package metadata of mtf_jax."""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent
_VERSION = re.search(
  r'^__version__ = "(.+)"$',
  (_ROOT / "mtf_jax" / "__init__.py").read_text(encoding="utf-8"),
  re.MULTILINE,
).group(1)
_TEST = [
  "flatbuffers>=24",
  "grain>=0.2.12",
  "gymnasium>=1.1",
  "hypothesis>=6.100",
  "ipykernel>=6.29",
  "matplotlib>=3.9",
  "minari[hdf5]>=0.5.4",
  "nbclient>=0.10",
  "pyarrow>=18",
  "pytest>=8",
  # Compilation, most of the tests' time, uses one core a process.
  "pytest-xdist>=3.6",
  "scipy>=1.13",
  "tensorboardX>=2.6.2.2",
]

setuptools.setup(
  name="mtf-jax",
  version=_VERSION,
  description=(
    "Reinforcement learning for multi-task fusion in short-video feeds:"
    " JAX kernels of IntegratedRL-MTF"
  ),
  long_description=(_ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["mtf_jax", "mtf_jax.*"]),
  package_data={
    "mtf_jax": [
      "py.typed",
      "evaluation/*.json",
      "fitting/*.json",
      "studies/*/*.json",
    ]
  },
  # Lower bounds only: an upper bound would fight the accelerator build of
  # jax that the user already has.
  install_requires=[
    "absl-py>=2.1",
    "chex>=0.1.90",
    "flax>=0.11",
    "jax>=0.8",
    "numpy>=2.0",
    "optax>=0.2.5",
    # Checkpoints of training; flax brings it along in any case.
    "orbax-checkpoint>=0.11.24",
  ],
  extras_require={
    # Streams CSV with row numbers in its errors; reads real logs.
    "data": ["pyarrow>=18"],
    # Reads the shards of a log that does not fit: threads, shuffling by random
    # access, a position that a run goes on from.
    "stream": ["grain>=0.2.12"],
    # Worlds as its environments; 1.1 is the first that names how a vector of
    # them resets.
    "gymnasium": ["gymnasium>=1.1"],
    # Logs as its datasets. It brings torch and asks for gymnasium 1.0.0, so
    # that it and the extra `gymnasium` have an environment each.
    "d3rlpy": ["d3rlpy>=2.8.1"],
    # Logs as its datasets; it imports pillow without asking for it.
    "minari": ["minari[hdf5]>=0.5.4", "pillow>=10"],
    # jax.export writes and reads programs with it.
    "serving": ["flatbuffers>=24"],
    "plots": ["matplotlib>=3.9"],
    # Metrics as TensorBoard reads them; the writer alone, without its server.
    "tensorboard": ["tensorboardX>=2.6.2.2"],
    "test": _TEST,
    "dev": [
      *_TEST,
      # Holds that imports run downwards only.
      "import-linter>=2.1",
      # The documentation site.
      "mkdocs-material>=9.7",
      "mkdocstrings[python]>=1.0",
      # Types of the public surface.
      "mypy>=1.15",
      "ruff>=0.14",
    ],
  },
  classifiers=[
    "Development Status :: 3 - Alpha",
    "Intended Audience :: Science/Research",
    "Operating System :: OS Independent",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Typing :: Typed",
  ],
)
