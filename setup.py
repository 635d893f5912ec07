"""Packaging of batchgrow. Tools are configured in pyproject.toml."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = "0.2.0"

CORE = [
    "absl-py",
    "etils[epath]",
    "flax>=0.12",
    "importlib_resources",  # which tensorflow_datasets takes without asking for it
    "jax>=0.10",
    "matplotlib",
    "ml-collections>=1.1",
    "numpy",
    "opencv-python-headless",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "scikit-learn",
    "simplejpeg",
    "tensorboardX",
    "tensorflow-datasets>=4.9.9",
    "array_record",
    "tqdm",
]

DOCS = ["furo", "myst-parser", "sphinx"]
NOTEBOOKS = ["ipykernel", "nbclient", "nbformat"]

EXTRAS = {
    "cuda": ["jax[cuda13]>=0.10"],
    "cuda12": ["jax[cuda12]>=0.10"],  # drivers before 580
    "tpu": ["jax[tpu]>=0.10"],
    "docs": DOCS,
    "hf": ["datasets"],
    "gs": ["etils[epath-gcs]"],
    "s3": ["etils[epath-s3]", "orbax-checkpoint==0.12.8"],  # batchgrow/run/s3.py
    "notebooks": NOTEBOOKS,
    "peers": ["keras", "torch", "transformers"],
    # The adapters. Recipes, plans and the order of the examples need NumPy only.
    "torch": ["torch>=2.4"],
    "huggingface": ["accelerate", "torch>=2.4", "transformers>=5"],
    "lightning": ["lightning>=2.4", "torch>=2.4"],
    "keras": ["keras>=3.5"],
    "wandb": ["wandb"],
    "tf": ["tensorflow-cpu"],
    # The suite builds the pages, runs the notebooks, reads event files as TensorBoard does, and
    # takes examples from a Grain source.
    "test": [
        "grain",
        *("hypothesis", "pre-commit", "pyright", "pytest", "pytest-xdist", "ruff", "tensorboard"),
        *DOCS,
        *NOTEBOOKS,
    ],
}

setup(
    name="batchgrow",
    version=VERSION,
    description="Grow the batch instead of decaying the learning rate, in JAX and Flax.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["batchgrow*"]),
    entry_points={"console_scripts": ["batchgrow = batchgrow.__main__:main"]},
    package_data={"batchgrow": ["py.typed"], "batchgrow.report": ["*.html"]},
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require=EXTRAS,
    license="Apache-2.0",
)
