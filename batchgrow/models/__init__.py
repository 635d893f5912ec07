"""Flax models. Their state does not depend on the batch size: batch norm uses ghost batches."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from batchgrow.models.conv_net import ConvNet
from batchgrow.models.ghost_batch_norm import GhostBatchNorm
from batchgrow.models.inception_resnet_v2 import InceptionResNetV2
from batchgrow.models.mlp import MLP
from batchgrow.models.resnet import ResNet
from batchgrow.models.socnn import SOCNN
from batchgrow.models.transformer import Transformer
from batchgrow.models.wide_resnet import WideResNet
from batchgrow.names import check_types, find, hint, parameters, takes_any

__all__ = [
    "MLP",
    "SOCNN",
    "ConvNet",
    "GhostBatchNorm",
    "InceptionResNetV2",
    "ResNet",
    "Transformer",
    "WideResNet",
    "make_model",
]

MODELS: dict[str, type[nn.Module]] = {
    "conv_net": ConvNet,
    "inception_resnet_v2": InceptionResNetV2,
    "mlp": MLP,
    "resnet": ResNet,
    "socnn": SOCNN,
    "transformer": Transformer,
    "wide_resnet": WideResNet,
}
# Arguments that are no fields of config.model.
FILLED = ("name", "parent", "rngs", "axis_name", "ghost_batch_size")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def make_model(
    name: str, *, ghost_batch_size: int | None = None, axis_name: str | None = None, **fields: Any
) -> Any:
    """Returns the model `name` with its module's own fields.

    Args:
      name: one of `MODELS`, or `module:Class` of a Flax module, Linen or NNX, or a function that
        returns one. A class that takes `rngs` is an NNX module (see `models.nnx.NNXModel`).
      ghost_batch_size: examples that share batch statistics; a model without ghost batch norm has
        no such field and ignores it.
      axis_name: the mapped device axis, likewise.
      fields: other fields of the module; a `dtype` is given by its name. A field that is None takes
        the module's own default.

    Raises:
      ValueError: for an unknown name, dtype or field, a field that is not set or has a wrong type,
        or a model with ghost batch norm and no ghost batch size.
    """
    model = find(name, MODELS, "model.name")
    known = parameters(model)
    fields = {field: value for field, value in fields.items() if value is not None}
    check_types(model, fields, "model")
    for field in fields:
        if field not in known and not takes_any(model):
            own = [f"model.{name}" for name in known if name not in FILLED]
            raise ValueError(f"{name} has no field model.{field}{hint(f'model.{field}', own)}")
    if "dtype" in fields:
        if fields["dtype"] not in DTYPES:
            raise ValueError(f"unknown model.dtype {fields['dtype']!r}; choose {', '.join(DTYPES)}")
        fields["dtype"] = DTYPES[fields["dtype"]]
    if "ghost_batch_size" in known:
        if ghost_batch_size is None:
            raise ValueError(
                f"ghost_batch_size is not set, but {name} has ghost batch norm; set it"
            )
        fields["ghost_batch_size"] = ghost_batch_size
    if "axis_name" in known:
        fields["axis_name"] = axis_name
    missing = [field for field in known if known[field] and field not in (*fields, "rngs")]
    if missing:
        raise ValueError(
            f"model.{missing[0]} is not set, and the data do not determine it; set it in the "
            f"config file or with --config.model.{missing[0]}=VALUE"
        )
    if isinstance(model, type) and issubclass(model, nn.Module):
        if "train" not in parameters(model.__call__) and not takes_any(model.__call__):
            raise ValueError(
                f"model.name {name!r}: its __call__ has no argument `train`; write "
                "`def __call__(self, x, *, train)`"
            )
    if "rngs" not in known:
        return model(**fields)
    from batchgrow.models.nnx import NNXModel

    return NNXModel(partial(model, **fields))
