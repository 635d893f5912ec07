"""Train one plan on CIFAR-10 with WRN-16-4, Sections 5.1 and 5.2 of the paper.

python -m experiments.cifar10 --config=configs/cifar10.py:hybrid --workdir=runs/hybrid

This is `experiments.train` under another name.
"""

from experiments.launch import launch
from experiments.train import main

if __name__ == "__main__":
    launch(main)
