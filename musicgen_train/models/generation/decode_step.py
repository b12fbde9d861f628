"""One step of generation for a request whose rows, text and length are known, and the weights arranged for it.

The decoder's own forward pass takes any call and looks at each. Within a request nothing changes from step to step but
the ids and the position, so all else is settled once: weights of one input stand in one matrix, positions are a table,
the text's mask is ready, and rows of the null condition skip the attention to the text, whose output is zero for them.
What it computes is the forward pass' (`tests/models/test_decode_step.py`), up to the order of sums.

On a CPU a step is bound by reading the weights once. torch's matrix product (MKL) reads them at a third of the memory's
speed where there are two rows, as guidance has; oneDNN's, with weights in blocks of its own, at nearly all of it
(`docs/benchmarks.md`).

Axes: B batch, R rows (B, or 2 B under guidance), K codebooks, V codes, D width, N heads, H head width, L text length,
S steps, I and O in- and outputs of a matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional as F

from musicgen_train.models.activations import ACTIVATIONS, Activation
from musicgen_train.models.attention import MusicgenAttention, cross_attention_mask
from musicgen_train.models.kv_cache import KeysValues, KVCache
from musicgen_train.models.norms import LayerNorm
from musicgen_train.models.positions import sinusoidal_positions
from musicgen_train.models.products import Linear

if TYPE_CHECKING:
    from musicgen_train.models.decoder import MusicgenDecoderLayer, MusicgenForCausalLM

# Smaller matrices than this are faster in torch's own product: oneDNN's takes some 30 us to be called.
_PACKED_FROM = 2**17


class StepWeights:
    """A decoder's weights, arranged for steps of a fixed number of rows; made once a request.

    Where weights are packed (float32 on a CPU) this is a second copy of them. The originals, if they are mapped files
    as `from_pretrained` leaves them, then need no memory: no step reads them.

    Args:
        model: must be `can_step`.
        rows: that a step has; packing depends on it, results do not.
    """

    @torch.no_grad()
    def __init__(self, model: MusicgenForCausalLM, rows: int) -> None:
        decoder = model.model.decoder
        self.width = model.config.hidden_size
        self.num_heads = model.config.num_attention_heads
        self.num_codebooks = model.num_codebooks
        # One table: codebook k's row of a code is `k * (V + 1) + code`.
        self.embeddings = torch.cat([cast(nn.Embedding, table).weight for table in decoder.embed_tokens])
        self.offsets_K = torch.arange(self.num_codebooks, device=model.device) * (model.config.vocab_size + 1)
        activation = model.config.activation_function
        self.layers = [_Layer.of(cast("MusicgenDecoderLayer", layer), activation, rows) for layer in decoder.layers]
        self.final_norm = _Norm.of(decoder.layer_norm)
        self.heads = _product([cast(nn.Linear, head).weight for head in model.lm_heads], rows)


class DecodeStep:
    """Logits after one more column of ids, for one window of a request.

    Args:
        weights: of the model.
        cache: holds the steps so far and the text's keys and values, of all rows; it moves on with every call.
        steps: of the window, the first columns included.
        text_mask_BL: 0 for padding; None for no text.
        guided: the cache's second half of rows has the null condition and the same codes as the first.
    """

    def __init__(
        self,
        weights: StepWeights,
        cache: KVCache,
        steps: int,
        text_mask_BL: torch.Tensor | None,
        guided: bool,
    ) -> None:
        self._weights = weights
        self._cache = cache
        self._positions_SD = sinusoidal_positions(0, steps, weights.width, weights.embeddings.device)
        self._guided = guided
        self._text: list[KeysValues] | None = None
        self._text_mask: torch.Tensor | None = None
        if text_mask_BL is not None:
            with_text = len(text_mask_BL)
            self._text = [
                (keys[:with_text], values[:with_text])
                for keys, values in (cache.require_cross(layer) for layer in range(len(cache)))
            ]
            if not bool(text_mask_BL.all()):
                self._text_mask = cross_attention_mask(text_mask_BL).allowed

    @torch.no_grad()
    def __call__(self, ids_BK: torch.Tensor) -> torch.Tensor:
        """Logits of the next column, float32 `(rows, codebooks, vocab_size)`.

        Args:
            ids_BK: int64, the newest column.
        """
        logits = self._logits(ids_BK)
        self._cache.advance(1)
        return logits

    def _logits(self, ids_BK: torch.Tensor) -> torch.Tensor:
        weights = self._weights
        embeddings_BKD = F.embedding(ids_BK + weights.offsets_K, weights.embeddings)
        hidden_RD = embeddings_BKD.sum(dim=1)
        # Added in float32, as in the forward pass.
        hidden_RD = (hidden_RD + self._position()).to(hidden_RD.dtype)
        if self._guided:
            hidden_RD = hidden_RD.repeat(2, 1)
        for index, layer in enumerate(weights.layers):
            hidden_RD = self._self_attention(hidden_RD, layer, index)
            if self._text is not None:
                self._add_text_attention(hidden_RD, layer, self._text[index])
            hidden_RD = layer.fc2.added_to(hidden_RD, layer.fc1.activated(layer.final_norm(hidden_RD)))
        logits = weights.heads(weights.final_norm(hidden_RD))
        return logits.view(len(hidden_RD), weights.num_codebooks, -1).float()

    def _self_attention(self, hidden_RD: torch.Tensor, layer: _Layer, index: int) -> torch.Tensor:
        projected = layer.query_key_value(layer.self_norm(hidden_RD))
        queries_RNH, keys_RNH, values_RNH = projected.view(len(hidden_RD), 3, self._weights.num_heads, -1).unbind(1)
        mixed = self._attend(index, queries_RNH.unsqueeze(2), keys_RNH.unsqueeze(2), values_RNH.unsqueeze(2))
        return layer.self_out.added_to(hidden_RD, mixed.reshape(hidden_RD.shape))

    def _position(self) -> torch.Tensor:
        """The embedding of the newest column's position."""
        return self._positions_SD[self._cache.length]

    def _attend(
        self, index: int, queries_RN1H: torch.Tensor, keys_RN1H: torch.Tensor, values_RN1H: torch.Tensor
    ) -> torch.Tensor:
        """To the newest column and those before it, `(rows, heads, 1, head_width)`."""
        keys, values = self._cache.append(index, keys_RN1H, values_RN1H)
        return F.scaled_dot_product_attention(queries_RN1H, keys, values)

    def _add_text_attention(self, hidden_RD: torch.Tensor, layer: _Layer, text: KeysValues) -> None:
        """In place, in the rows that have a text."""
        keys_BNLH, values_BNLH = text
        hidden_BD = hidden_RD[: len(keys_BNLH)]
        queries = layer.cross_query(layer.cross_norm(hidden_BD))
        queries_BN1H = queries.view(len(hidden_BD), self._weights.num_heads, 1, -1)
        mixed = F.scaled_dot_product_attention(queries_BN1H, keys_BNLH, values_BNLH, attn_mask=self._text_mask)
        hidden_BD += layer.cross_out(mixed.reshape(hidden_BD.shape))


def can_step(model: MusicgenForCausalLM) -> bool:
    """Whether `DecodeStep` computes what the model's forward pass does: nothing of it is wrapped, hooked or sharded."""
    from musicgen_train.models.decoder import MusicgenDecoder, MusicgenDecoderLayer, MusicgenModel

    plain = {
        *(MusicgenModel, MusicgenDecoder, MusicgenDecoderLayer, MusicgenAttention, Linear),
        *(nn.ModuleList, nn.Embedding, LayerNorm),
    }
    parts = [*model.model.modules(), *model.lm_heads.modules()]
    if any(type(part) not in plain or part._forward_hooks or part._forward_pre_hooks for part in parts):
        return False
    parameters = [*model.model.parameters(), *model.lm_heads.parameters()]
    return all(
        type(parameter) is nn.Parameter and parameter.dtype == model.dtype and parameter.device == model.device
        for parameter in parameters
    )


@dataclass(frozen=True)
class _Layer:
    self_norm: _Norm
    query_key_value: _Product
    self_out: _Product
    cross_norm: _Norm
    cross_query: _Product
    cross_out: _Product
    final_norm: _Norm
    fc1: _Product
    fc2: _Product

    @classmethod
    def of(cls, layer: MusicgenDecoderLayer, activation: str, rows: int) -> _Layer:
        own, cross = layer.self_attn, layer.encoder_attn
        return cls(
            self_norm=_Norm.of(layer.self_attn_layer_norm),
            query_key_value=_product([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight], rows),
            self_out=_product([own.out_proj.weight], rows),
            cross_norm=_Norm.of(layer.encoder_attn_layer_norm),
            cross_query=_product([cross.q_proj.weight], rows),
            cross_out=_product([cross.out_proj.weight], rows),
            final_norm=_Norm.of(layer.final_layer_norm),
            fc1=_product([layer.fc1.weight], rows, activation),
            fc2=_product([layer.fc2.weight], rows),
        )


@dataclass(frozen=True)
class _Norm:
    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> _Norm:
        return cls(norm.weight, norm.bias, norm.eps)

    def __call__(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(hidden_RD, self.weight.shape, self.weight, self.bias, self.eps)


class _Product(ABC):
    """The product of some rows with a matrix of weights."""

    @abstractmethod
    def __call__(self, states_RI: torch.Tensor) -> torch.Tensor:
        """`(rows, outputs)`."""

    @abstractmethod
    def added_to(self, residual_RO: torch.Tensor, states_RI: torch.Tensor) -> torch.Tensor:
        """The product plus `residual_RO`."""

    @abstractmethod
    def activated(self, states_RI: torch.Tensor) -> torch.Tensor:
        """The activation function of the product."""


class _TorchProduct(_Product):
    """By torch's own kernels."""

    def __init__(self, weight_OI: torch.Tensor, activation: Activation) -> None:
        # Contiguous along the outputs is what MKL reads fastest for a few rows; other devices do not mind.
        self._weight_IO = weight_OI.t().contiguous() if weight_OI.device.type == "cpu" else weight_OI.t()
        self._activation = activation

    def __call__(self, states_RI: torch.Tensor) -> torch.Tensor:
        return torch.mm(states_RI, self._weight_IO)

    def added_to(self, residual_RO: torch.Tensor, states_RI: torch.Tensor) -> torch.Tensor:
        return torch.addmm(residual_RO, states_RI, self._weight_IO)

    def activated(self, states_RI: torch.Tensor) -> torch.Tensor:
        return self._activation(self(states_RI))


class _PackedProduct(_Product):
    """By oneDNN's kernels, with the weights in its own layout, and what follows the product done with it.

    These are the operators that torch.compile puts in the place of linear layers on a CPU.
    """

    def __init__(self, weight_OI: torch.Tensor, activation: str, rows: int) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, rows)
        self._activation = activation

    def __call__(self, states_RI: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states_RI, self._packed, None, "none", [], "")
        return product

    def added_to(self, residual_RO: torch.Tensor, states_RI: torch.Tensor) -> torch.Tensor:
        add = torch.ops.mkldnn._linear_pointwise.binary
        product: torch.Tensor = add(states_RI, residual_RO, self._packed, None, "add")
        return product

    def activated(self, states_RI: torch.Tensor) -> torch.Tensor:
        if self._activation != "gelu":
            return ACTIVATIONS[self._activation](self(states_RI))
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states_RI, self._packed, None, "gelu", [], "none")
        return product


def _product(weights_OI: list[torch.Tensor], rows: int, activation: str = "gelu") -> _Product:
    """One product with several matrices of the same inputs, their outputs side by side."""
    weight_OI = weights_OI[0].detach() if len(weights_OI) == 1 else torch.cat([one.detach() for one in weights_OI])
    if can_pack(weight_OI):
        return _PackedProduct(weight_OI, activation, rows)
    return _TorchProduct(weight_OI, ACTIVATIONS[activation])


def can_pack(weight: torch.Tensor) -> bool:
    """Whether a product with these weights is one for oneDNN, and torch has it built in."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= _PACKED_FROM
        and torch.backends.mkldnn.is_available()
    )
