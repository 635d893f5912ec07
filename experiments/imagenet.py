"""ImageNet with ResNet-50 or Inception-ResNet-V2, Sections 5.3 and 5.4 of the paper: one plan.

python -m experiments.imagenet --config=configs/imagenet_resnet50.py:large_batch --workdir=DIR
"""

from experiments.launch import launch
from experiments.train import main

if __name__ == "__main__":
    launch(main)
