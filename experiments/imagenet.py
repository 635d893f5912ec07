"""Train one plan on ImageNet, Sections 5.3 (Inception-ResNet-V2) and 5.4 (ResNet-50).

python -m experiments.imagenet --config=configs/imagenet_resnet50.py:large_batch --workdir=DIR

This is `experiments.train` under another name.
"""

from experiments.launch import launch
from experiments.train import main

if __name__ == "__main__":
    launch(main)
