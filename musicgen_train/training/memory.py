"""How much memory training takes: estimated before it begins, and measured beside the estimate.

What has a size of its own (weights, gradients, optimizer, average) is counted. What the backward pass keeps follows
from the architecture: the tensors that torch saves for it, as listed in `_saved_by_layer`.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from musicgen_train.models.config import MusicgenDecoderConfig
from musicgen_train.models.loss import rows_at_once
from musicgen_train.models.products import computed_in
from musicgen_train.training.step.optimizers import MakeOptimizer
from musicgen_train.training.weights.adapters import AdapterRecord

GIB = 2**30


# The matrix products of a layer, and which tensor each one takes: products of one tensor can share what is kept of it.
_PRODUCTS = {
    "self_attn.q_proj": "normed",
    "self_attn.k_proj": "normed",
    "self_attn.v_proj": "normed",
    "self_attn.out_proj": "self-attended",
    "encoder_attn.q_proj": "normed for cross-attention",
    "encoder_attn.k_proj": "text",
    "encoder_attn.v_proj": "text",
    "encoder_attn.out_proj": "cross-attended",
    "fc1": "normed for feed-forward",
    "fc2": "activated",
}
# Kept by attention for its own backward pass, unless that does it again.
_ATTENDED = {"self-attended", "cross-attended"}

# Captions are rarely longer, and a few positions hardly matter.
_TEXT_LENGTH = 64
_STATISTICS = 2 * 4  # a layer norm's mean and deviation, float32
_INDEX = 8  # int64


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a device computes at once, and how."""

    clips: int
    frames: int
    """Of each clip."""
    text_length: int = _TEXT_LENGTH
    """Positions of each clip's text."""
    precision: str
    """Lightning's name."""
    checkpointing: bool
    accumulate: int = 1
    """Micro-batches of an optimizer step."""
    world_size: int = 1
    """Devices that train together, each with all weights."""

    @property
    def weight_dtype(self) -> torch.dtype:
        """Of the weights."""
        return {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(self.precision, torch.float32)

    @property
    def product_size(self) -> int:
        """Bytes of a number in matrix products."""
        return self.product_dtype.itemsize

    @property
    def product_dtype(self) -> torch.dtype:
        """What the operands of matrix products are rounded to."""
        halves = {"bf16": torch.bfloat16, "16": torch.float16}
        return halves.get(self.precision.partition("-")[0], torch.float32)

    @property
    def rounds(self) -> bool:
        """Whether matrix products take rounded copies of weights and inputs (autocast)."""
        return self.product_size < self.weight_dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device."""

    weights: int
    """Of decoder and projection, and of the audio encoder where it is on the device too."""
    gradients: int
    """With the copy that DDP exchanges."""
    optimizer: int
    average: int
    activations: int
    """What the backward pass needs of a micro-batch at its fullest; with rounded copies of weights, and the logits."""
    accumulates: bool
    """Whether gradients of earlier micro-batches are there beside them."""

    @property
    def lasting(self) -> int:
        """What is there all the time; exact."""
        return self.weights + self.optimizer + self.average

    @property
    def needed(self) -> int:
        """What no batch can do without: exact."""
        return self.lasting + self.gradients

    @property
    def total(self) -> int:
        """The peak. Within a micro-batch gradients come as activations go."""
        if self.accumulates:
            return self.needed + self.activations
        return self.lasting + max(self.gradients, self.activations)

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in ("weights", "gradients", "optimizer", "average", "activations")}
        return f"{gib(self.total)} ({', '.join(f'{name} {value / GIB:.2f}' for name, value in parts.items() if value)})"


class ModelMemory:
    """The memory that training a model takes, for one kind of step or another.

    Args:
        model: a module with the parts `decoder` and, where there is one, `enc_to_dec_proj`, frozen as it will be.
        config: of the decoder.
        make_optimizer: an optimizer from parameters.
        device: where it will be trained; it may still be elsewhere.
        averages: whether an average of the trained weights is kept on the device.
        beside: bytes of other models on the device.
        adapter: of the model, which has it already.
    """

    def __init__(
        self,
        model: nn.Module,
        config: MusicgenDecoderConfig,
        make_optimizer: MakeOptimizer,
        *,
        device: torch.device,
        averages: bool = False,
        beside: int = 0,
        adapter: AdapterRecord | None = None,
    ) -> None:
        self._model = model
        self._config = config
        self._make_optimizer = make_optimizer
        self._averages = averages
        self._beside = beside
        self._adapter = adapter
        self._device = device
        self._optimizer_bytes: dict[torch.dtype, int] = {}
        self._trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        modules = dict(model.named_modules())
        self._heads = [_Product.of(modules, f"decoder.lm_heads.{k}", "normed") for k in range(config.num_codebooks)]
        self._layers = [
            [
                _Product.of(modules, f"decoder.model.decoder.layers.{index}.{name}", takes)
                for name, takes in _PRODUCTS.items()
            ]
            for index in range(config.num_hidden_layers)
        ]

    def of(self, step: Step) -> Memory:
        """The memory of a kind of step."""
        size = step.weight_dtype.itemsize
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        gradients = size * sum(parameter.numel() for parameter in trained)
        return Memory(
            weights=size * sum(parameter.numel() for parameter in self._model.parameters()) + self._beside,
            gradients=gradients if step.world_size == 1 else 2 * gradients,
            optimizer=self._optimizer(step.weight_dtype),
            average=gradients if self._averages else 0,
            activations=self.activations(step),
            accumulates=step.accumulate > 1,
        )

    def _optimizer(self, dtype: torch.dtype) -> int:
        if dtype not in self._optimizer_bytes:
            trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
            self._optimizer_bytes[dtype] = optimizer_bytes(self._make_optimizer, trained, dtype, self._device)
        return self._optimizer_bytes[dtype]

    def activations(self, step: Step) -> int:
        """What the backward pass needs at its fullest: at its beginning, when the heads are scored or their gradients
        passed on, or with checkpointing, in a layer that is computed again."""
        config, layers = self._config, self._layers_with_gradients()
        positions = step.clips * step.frames
        beginning = self._saved_by_heads(step) + self._scoring(step)
        # Lightning's autocast keeps no copies of weights itself, but the backward pass of a product keeps its own.
        saved = [self._saved_by_layer(step, layer) + self._copied_weights(step, layer) for layer in layers]
        if not step.checkpointing:
            return self._saved_once(step) + sum(saved) + beginning
        inputs = len(layers) * positions * config.hidden_size * step.weight_dtype.itemsize
        if step.rounds and self._device.type == "cpu":
            # And attention in it: its queries, keys, values and results in float32, and their gradients.
            saved = [size + 2 * 4 * positions * config.hidden_size * 4 for size in saved]
        return self._saved_once(step) + inputs + max([beginning, *saved])

    def saved_bytes(self, step: Step) -> int:
        """What the backward pass keeps without checkpointing, but for weights, their copies and their gradients."""
        layers = sum(self._saved_by_layer(step, layer) for layer in self._layers_with_gradients())
        return self._saved_once(step) + layers + self._saved_by_heads(step)

    def _copied_weights(self, step: Step, products: list[_Product]) -> int:
        """Rounded copies of weights, but for that of the product after a gelu, which is made again."""
        if not (step.rounds and self._is_native(step)):
            return 0
        gelu = self._config.activation_function == "gelu" and not self._config.activation_dropout
        return step.product_size * sum(
            product.numel
            for product in products
            if not (gelu and product.takes == "activated" and product.trained and not product.adapted)
        )

    def _layers_with_gradients(self) -> list[list[_Product]]:
        """All layers, but for those at the bottom that nothing below them or in them is trained for."""
        if any(name.startswith(("decoder.model.decoder.embed_tokens.", "enc_to_dec_proj.")) for name in self._trained):
            return self._layers
        for index in range(len(self._layers)):
            if any(name.startswith(f"decoder.model.decoder.layers.{index}.") for name in self._trained):
                return self._layers[index:]
        return []

    def _saved_by_layer(self, step: Step, products: list[_Product]) -> int:
        """Of each position: the inputs of three norms; queries, keys, values and results of two attentions, with the
        logarithms of their sums (of attention that is done again, neither); the feed-forward before its activation; and
        of the inputs of matrix products what training their weights needs. Of each position of the text: keys and
        values."""
        config, size = self._config, step.product_size
        width = config.hidden_size
        positions, text = step.clips * step.frames, step.clips * step.text_length
        norms = 3 * (width * step.weight_dtype.itemsize + _STATISTICS)
        attentions = (3 + 1) * width * size
        repeated = self._repeats_attention(step)
        if not repeated:
            attentions += 2 * (width * size + config.num_attention_heads * 4)
        dropped = 3 * width * self._dropout_mask(size) if config.dropout else 0
        saved = positions * (norms + attentions + config.ffn_dim * size + dropped) + text * 2 * width * size
        shared = {"text"} | (set() if repeated else _ATTENDED)  # the text once for all layers
        if config.activation_function == "gelu" and not config.activation_dropout:
            shared |= {product.takes for product in products if product.takes == "activated" and not product.adapted}
        for product in products:
            rows = text if product.takes == "text" else positions
            saved += rows * self._kept_by(product, step, shared)
        return saved

    def _kept_by(self, product: _Product, step: Step, shared: set[str]) -> int:
        """Of each position, what is kept of a product's input, which is added to `shared`, and for its adapter."""
        size, adapter = step.product_size, self._adapter
        kept = 0
        if adapter is not None and product.adapted and adapter.dropout:
            kept += product.inputs * (size + self._dropout_mask(step.weight_dtype.itemsize))
        elif step.rounds and product.adapted:
            # An adapter takes its input in float32, which autocast rounds anew.
            kept += product.inputs * size
        elif (product.trained or product.adapted) and product.takes not in shared:
            shared.add(product.takes)
            kept += product.inputs * size
        if adapter is not None and product.adapted:
            # With DoRA, the lengths are multiplied with the results of the frozen product and of the adapter.
            kept += (adapter.rank + (2 * product.outputs if adapter.dora else 0)) * size
        return kept

    def _dropout_mask(self, size: int) -> int:
        """Bytes that dropout keeps of a number of so many bytes: what it was multiplied with, or on a GPU, whether."""
        return 1 if self._device.type == "cuda" else size

    def _saved_by_heads(self, step: Step) -> int:
        """The last norm; of plain heads the gradients of each one's sum by the states; of heads with an adapter their
        inputs, and the logarithm of the softmax in float32 with the labels."""
        config = self._config
        kept = 0
        if any(not name.startswith("decoder.lm_heads.") for name in self._trained):
            kept += config.hidden_size * step.weight_dtype.itemsize + _STATISTICS
            kept += 0 if self._heads_are_called() else len(self._heads) * config.hidden_size * step.product_size
        if self._heads_are_called():
            shared: set[str] = set()
            kept += sum(self._kept_by(head, step, shared) + config.vocab_size * 4 + _INDEX for head in self._heads)
        return step.clips * step.frames * kept

    def _scoring(self, step: Step) -> int:
        """Beside that, the gradients of the heads' weights, and the larger of: the logits that are there at once with
        their softmax, and what becomes of the gradients when they are passed on. Of heads with an adapter, all logits.
        """
        config = self._config
        positions = step.clips * step.frames
        if self._heads_are_called():
            copies = sum(head.numel for head in self._heads) * step.product_size if step.rounds else 0
            return positions * len(self._heads) * config.vocab_size * step.product_size + copies
        weights = step.weight_dtype.itemsize * sum(head.numel for head in self._heads if head.trained)
        rows = min(positions, rows_at_once(config.vocab_size, self._device))
        exact = 2 * 4 + (2 * step.product_size if step.rounds else 0)
        scored = rows * config.vocab_size * exact
        passed_on = positions * config.hidden_size * 4 + weights
        return weights + max(scored, passed_on)

    def _heads_are_called(self) -> bool:
        return any(head.adapted for head in self._heads)

    def _is_native(self, step: Step) -> bool:
        """Whether the device multiplies in the precision asked for: see `models.products`."""
        return computed_in(step.product_dtype, self._device) == step.product_dtype

    def _repeats_attention(self, step: Step) -> bool:
        """Whether attention is done again in the backward pass: see `models.layers.attend`."""
        return not self._is_native(step)

    def _saved_once(self, step: Step) -> int:
        """Codes to embed, dropout of the embeddings, and the states of the text."""
        if not self._layers_with_gradients():
            return 0
        config = self._config
        embedded = config.num_codebooks * _INDEX
        if config.dropout:
            embedded += config.hidden_size * self._dropout_mask(step.weight_dtype.itemsize)
        return step.clips * (step.frames * embedded + step.text_length * config.hidden_size * step.product_size)


@dataclass(frozen=True, kw_only=True)
class _Product:
    """A matrix product of the decoder."""

    inputs: int
    outputs: int
    takes: str
    """See `_PRODUCTS`."""
    trained: bool
    adapted: bool

    @property
    def numel(self) -> int:
        return self.inputs * self.outputs

    @classmethod
    def of(cls, modules: dict[str, nn.Module], name: str, takes: str) -> _Product:
        adapted = f"{name}.base_layer" in modules
        linear = modules[f"{name}.base_layer" if adapted else name]
        assert isinstance(linear, nn.Linear)
        return cls(
            inputs=linear.in_features,
            outputs=linear.out_features,
            takes=takes,
            trained=linear.weight.requires_grad,
            adapted=adapted,
        )


def optimizer_bytes(
    make_optimizer: MakeOptimizer,
    parameters: list[nn.Parameter],
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> int:
    """What an optimizer keeps about parameters, found by one step on one tensor of each shape.

    Args:
        make_optimizer: an optimizer from parameters.
        parameters: that are trained; they are left alone.
        dtype: that they will have.
        device: where they will be; None for where they are.
    """
    sizes: dict[tuple[int, ...], int] = {}
    for parameter in parameters:
        shape = tuple(parameter.shape)
        if shape not in sizes:
            try:
                # Tensors without values have sizes too, and cost nothing.
                sizes[shape] = _bytes_about_one(make_optimizer, shape, dtype, torch.device("meta"))
            except Exception:  # whatever an optimizer raises that looks at values, or has kernels of its own
                sizes[shape] = _bytes_about_one(make_optimizer, shape, dtype, device or parameter.device)
    return sum(sizes[tuple(parameter.shape)] for parameter in parameters)


def _bytes_about_one(
    make_optimizer: MakeOptimizer, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> int:
    one = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))
    one.grad = torch.zeros_like(one)
    optimizer = make_optimizer(iter([one]))
    optimizer.step()
    return sum(value.nbytes for value in optimizer.state[one].values() if isinstance(value, torch.Tensor))


def require_room(memory: ModelMemory, step: Step, capacity: int | None) -> str | None:
    """Compare the estimate with what a device has.

    Args:
        memory: of the model.
        step: what is to be computed.
        capacity: bytes, see `capacity_of`; None where it is not known.

    Returns:
        A warning where the estimate is more than there is, which activations may be off by some percent; else None.

    Raises:
        ValueError: weights, gradients and optimizer alone are more than there is.
    """
    found = memory.of(step)
    if capacity is None or found.total <= capacity:
        return None
    if found.needed > capacity:
        raise ValueError(
            f"weights, gradients and optimizer alone take {gib(found.needed)}, and the device has {gib(capacity)}: "
            f"{_lighter_training(found)}"
        )
    fitting = [remedy for remedy in remedies(step) if memory.of(remedy.step).total <= capacity]
    what = (
        " or ".join(f"{remedy.setting} ({gib(memory.of(remedy.step).total)})" for remedy in fitting[:2])
        if fitting
        else f"data.crop_seconds below what it is, or {_lighter_training(found)}"
    )
    return f"warning: {gib(found.total)} are needed, and the device has {gib(capacity)}. What would fit: {what}"


def _lighter_training(memory: Memory) -> str:
    average = "; callbacks.ema.device=cpu" if memory.average else ""
    return f"adapter=lora, or optimizer=adamw_8bit or adafactor{average}; or a smaller model"


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A setting that takes less memory and leaves the result as it is."""

    setting: str
    step: Step


def remedies(step: Step) -> list[Remedy]:
    """Smaller micro-batches, then activation checkpointing, then both."""
    with_checkpointing = "model.activation_checkpointing=true"
    sizes = [clips for clips in range(step.clips - 1, 0, -1) if step.clips % clips == 0]
    smaller = [
        Remedy(
            setting=f"data.micro_batch_size={clips}",
            step=dataclasses.replace(step, clips=clips, accumulate=step.accumulate * step.clips // clips),
        )
        for clips in sizes
    ]
    if step.checkpointing:
        return smaller
    checkpointed = [
        Remedy(
            setting=" ".join(filter(None, [remedy.setting, with_checkpointing])),
            step=dataclasses.replace(remedy.step, checkpointing=True),
        )
        for remedy in [Remedy(setting="", step=step), *smaller]
    ]
    return [*smaller, *checkpointed]


def capacity_of(device: torch.device) -> int | None:
    """Bytes that this process can have on a device: on a GPU what is free or its own; None where that is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    if device.type == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


class MemoryWatch:
    """An estimate, and what it came to.

    On a GPU the peak is of torch's own tensors. On the CPU it is of the whole process with all that it held before, so
    its growth is compared, with the estimate but for the weights, which are there before; the peak of the time before
    is forgotten where the system can do that (Linux).

    Args:
        memory: of the model.
        step: what is computed at once.
        device: where.
    """

    def __init__(self, memory: ModelMemory, step: Step, device: torch.device) -> None:
        self._memory = memory
        self._step = step
        self._device = device
        self._before: int | None = None

    def estimate(self) -> list[str]:
        """Lines that tell the estimate, and what to change where it is more than the device has.

        Raises:
            ValueError: see `require_room`.
        """
        warning = require_room(self._memory, self._step, capacity_of(self._device))
        line = f"memory: about {self._memory.of(self._step)} for {self._step.clips} x {self._step.frames} frames"
        return [line] if warning is None else [line, warning]

    def begin(self) -> None:
        """Forget the peak so far, such as that of decoding audio, which is not training."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._device.type == "cpu" and os.access(_RESET_PEAK, os.W_OK):
            _RESET_PEAK.write_text("5")
            self._before = _status("VmRSS")

    def measured(self) -> tuple[int, int] | None:
        """Bytes at the peak since `begin`, and what they were estimated to be; None where the system does not tell."""
        found = self._memory.of(self._step)
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device), found.total
        return None if self._before is None else (_status("VmHWM") - self._before, found.total - found.weights)

    def report(self) -> list[str]:
        """A line that compares, if there is anything to compare."""
        measured = self.measured()
        if measured is None:
            return []
        peak, estimate = measured
        what = "at the peak" if self._device.type == "cuda" else "more at the peak than before training"
        return [f"memory: {gib(peak)} {what}, {gib(estimate)} estimated"]


_STATUS = Path("/proc/self/status")
_RESET_PEAK = Path("/proc/self/clear_refs")


def _status(name: str) -> int:
    [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def gib(size: int) -> str:
    """Bytes as text."""
    return f"{size / GIB:.2f} GiB"
