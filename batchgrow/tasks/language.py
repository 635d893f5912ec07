"""Language modelling: predict each token from those before it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from batchgrow.models.dropout import apply
from batchgrow.tasks import Metric, Outputs, Variables


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """Trains `model` to predict the next token.

    Examples are {"tokens": integers `(examples, context + 1)`}. The loss of an example is the
    cross entropy in nats, averaged over its `context` predictions.

    Attributes:
      model: called as `model(tokens, train=...)` with `(examples, context)`; returns the logits of
        the next tokens, `(examples, context, vocabulary)`.
      bytes_per_token: the UTF-8 bytes of each token, `(vocabulary,)`, or one number for all.
    """

    model: nn.Module
    bytes_per_token: np.ndarray | float = 1.0

    inputs = (("tokens", "text"),)
    metrics = (
        Metric("loss", "lower"),
        Metric("perplexity", "lower"),
        Metric("bits_per_byte", "lower"),
    )

    def init(self, key: jax.Array, examples: Mapping[str, jax.Array]) -> Variables:
        """Returns the initial variables of the model."""
        return self.model.init(key, examples["tokens"][:, :-1], train=False)

    def loss(
        self,
        variables: Variables,
        examples: Mapping[str, jax.Array],
        keys: jax.Array | None,
        *,
        train: bool,
    ) -> Outputs:
        """Returns the cross entropy of each example, and the mean bytes of its tokens."""
        tokens = examples["tokens"].astype(jnp.int32)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        logits, model_state = apply(self.model, variables, inputs, keys, train=train)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), targets
        )
        sizes = jnp.asarray(self.bytes_per_token, jnp.float32)
        sizes = sizes[targets] if sizes.ndim else jnp.full(targets.shape, sizes)
        return Outputs(losses.mean(1), model_state, {"bytes_per_token": sizes.mean(1)})

    def summarize(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns loss L in nats per token, perplexity exp(L), and bits per byte.

        Bits per byte are L / ln 2 over the mean bytes per token.
        """
        loss = sums["loss"] / sums["count"]
        return {
            "loss": loss,
            "perplexity": math.inf if loss > 700 else math.exp(loss),
            "bits_per_byte": sums["loss"] / sums["bytes_per_token"] / math.log(2),
        }


def sample(
    model: nn.Module,
    variables: Variables,
    prompt: np.ndarray,
    num_tokens: int,
    key: jax.Array,
    *,
    context: int,
    temperature: float = 1.0,
) -> np.ndarray:
    """Returns `num_tokens` tokens that the model writes after `prompt`, int32 `(num_tokens,)`.

    Args:
      model, variables: as in `LanguageModel`.
      prompt: tokens `(length,)`, at least one.
      key: a typed PRNG key.
      context: the most tokens that the model takes. Each is drawn given the last `context` tokens.
      temperature: divides the logits.

    Raises:
      ValueError: if the prompt is empty.
    """
    start = len(prompt)
    if not start:
        raise ValueError("prompt is empty: pass at least one token")
    end = start + num_tokens
    tokens = jnp.zeros(max(end, context), jnp.int32).at[:start].set(jnp.asarray(prompt, jnp.int32))

    def write(position: jax.Array, tokens: jax.Array) -> jax.Array:
        first = jnp.maximum(position - context, 0)
        window = lax.dynamic_slice_in_dim(tokens, first, context)
        logits: Any = model.apply(variables, window[None], train=False)
        logits = logits[0, position - 1 - first].astype(jnp.float32)
        token = jax.random.categorical(jax.random.fold_in(key, position), logits / temperature)
        return tokens.at[position].set(token)

    tokens = jax.jit(lambda tokens: lax.fori_loop(start, end, write, tokens))(tokens)
    return np.asarray(tokens[start:end])
