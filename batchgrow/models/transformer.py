"""A decoder-only transformer: GPT-2 as written in nanoGPT's `model.py`."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

STDDEV = 0.02  # of all initial weights, but for the projections back to the residual stream


class Transformer(nn.Module):
    """Token and position embeddings, `layers` blocks, a layer norm, logits by the tied embedding.

    Parameters: V C + T C + L (12 C^2 + 2 C) + C for vocabulary V, context T, channels C and layers
    L; with `bias`, 11 L C + C more.

    Attributes:
      vocab_size: number of tokens V.
      context: tokens T that a prediction may use, including the current one.
      layers: number of blocks L.
      heads: number of heads of the attention; a divisor of `channels`.
      channels: C of the residual stream.
      dropout: probability, of embeddings, attention weights and what a block adds.
      bias: whether dense layers and layer norms have biases.
      dtype: the dtype of activations and products; parameters, softmax and logits are float32.
    """

    vocab_size: int
    context: int
    layers: int
    heads: int
    channels: int
    dropout: float = 0.0
    bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits of the next tokens, float32 `(examples, time, vocab_size)`.

        Args:
          tokens: integers `(examples, time)` below `vocab_size`; `time` is at most `context`.
          train: whether dropout is active.

        Raises:
          ValueError: if `heads` does not divide `channels`, or the tokens exceed the context.
        """
        if self.channels % self.heads:
            raise ValueError(
                f"model.channels {self.channels} must be a multiple of model.heads {self.heads}"
            )
        time = tokens.shape[1]
        if time > self.context:
            raise ValueError(f"{time} tokens exceed model.context {self.context}: pass fewer")
        normal = nn.initializers.normal(STDDEV)
        embed = partial(nn.Embed, features=self.channels, embedding_init=normal, dtype=self.dtype)
        token = embed(self.vocab_size, name="token")
        position = embed(self.context, name="position")
        x = token(tokens.astype(jnp.int32)) + position(jnp.arange(time)[None])
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for layer in range(self.layers):
            block = Block(
                self.heads, self.layers, self.dropout, self.bias, self.dtype, name=f"block_{layer}"
            )
            x = block(x, train=train)
        x = nn.LayerNorm(1e-5, use_bias=self.bias, dtype=self.dtype, name="norm")(x)
        table = token.embedding.astype(self.dtype)
        return jnp.dot(x, table.T, preferred_element_type=jnp.float32)  # `attend` would round them


class Block(nn.Module):
    """Causal self-attention and a two-layer perceptron, each after a layer norm and added to x."""

    heads: int
    layers: int
    dropout: float
    bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `(examples, time, channels)` to the same shape."""
        channels = x.shape[-1]
        dense = partial(nn.Dense, use_bias=self.bias, dtype=self.dtype)
        inner = partial(dense, kernel_init=nn.initializers.normal(STDDEV))
        residual = nn.initializers.normal(STDDEV / math.sqrt(2 * self.layers))
        norm = partial(nn.LayerNorm, 1e-5, use_bias=self.bias, dtype=self.dtype)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)

        qkv = inner(3 * channels, name="query_key_value")(norm(name="attention_norm")(x))
        query, key, value = jnp.split(qkv.reshape(*x.shape[:2], 3 * self.heads, -1), 3, axis=2)
        weights = drop(name="weights_dropout")(attention_weights(query, key))
        y = jnp.einsum("bhqk,bkhc->bqhc", weights, value).reshape(x.shape)
        y = dense(channels, kernel_init=residual, name="attention_output")(y)
        x = x + drop(name="attention_dropout")(y)

        y = nn.gelu(inner(4 * channels, name="hidden")(norm(name="hidden_norm")(x)), False)
        y = dense(channels, kernel_init=residual, name="hidden_output")(y)
        return x + drop(name="hidden_dropout")(y)


def attention_weights(query: jax.Array, key: jax.Array) -> jax.Array:
    """Returns softmax(q k^T / sqrt(C)) over the positions up to each query's own.

    Args:
      query, key: `(examples, time, heads, C)`.

    Returns:
      `(examples, heads, time, time)` in the dtype of `query`; the softmax is float32.
    """
    scores = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(query.shape[-1])
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
    return jax.nn.softmax(jnp.where(causal, scores, -jnp.inf)).astype(query.dtype)
