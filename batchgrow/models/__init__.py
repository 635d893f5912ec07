"""Flax models. None has state that depends on the batch size; image models use ghost batch norm."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from batchgrow.models.conv_net import ConvNet
from batchgrow.models.dropout import apply
from batchgrow.models.ghost_batch_norm import GhostBatchNorm
from batchgrow.models.inception_resnet_v2 import InceptionResNetV2
from batchgrow.models.mlp import MLP
from batchgrow.models.resnet import ResNet
from batchgrow.models.transformer import Transformer
from batchgrow.models.wide_resnet import WideResNet

__all__ = [
    "ConvNet",
    "GhostBatchNorm",
    "InceptionResNetV2",
    "MLP",
    "ResNet",
    "Transformer",
    "WideResNet",
    "apply",
    "make_model",
]

MODELS: dict[str, type[nn.Module]] = {
    "conv_net": ConvNet,
    "inception_resnet_v2": InceptionResNetV2,
    "mlp": MLP,
    "resnet": ResNet,
    "transformer": Transformer,
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
