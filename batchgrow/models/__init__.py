"""Flax models. Each normalises by ghost batches and has no state that depends on the batch size."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from batchgrow.models.conv_net import ConvNet
from batchgrow.models.ghost_batch_norm import GhostBatchNorm
from batchgrow.models.inception_resnet_v2 import InceptionResNetV2
from batchgrow.models.resnet import ResNet
from batchgrow.models.wide_resnet import WideResNet

__all__ = [
    "ConvNet",
    "GhostBatchNorm",
    "InceptionResNetV2",
    "ResNet",
    "WideResNet",
    "make_model",
]

MODELS: dict[str, type[nn.Module]] = {
    "conv_net": ConvNet,
    "inception_resnet_v2": InceptionResNetV2,
    "resnet": ResNet,
    "wide_resnet": WideResNet,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def make_model(name: str, *, dtype: str, **fields: Any) -> Any:
    """The model `name` with its module's own fields.

    Raises:
      ValueError: for an unknown name, dtype or field.
    """
    if name not in MODELS:
        raise ValueError(f"model.name {name!r} is none of {', '.join(MODELS)}")
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype {dtype!r} is none of {', '.join(DTYPES)}")
    known = MODELS[name].__dataclass_fields__
    for field in fields:
        if field not in known:
            raise ValueError(f"model.{field} is no field of {name}")
    return MODELS[name](dtype=DTYPES[dtype], **fields)
