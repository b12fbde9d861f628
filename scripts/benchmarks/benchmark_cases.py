"""The cases of the speed benchmark: what each runs, with either library, and which results are compared.

The workers of both libraries import it, so it imports neither: a case is given its library's module.
"""

from __future__ import annotations

import functools
import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
from benchmark_costs import (
    Work,
    codec_flops,
    forward_flops,
    search_flops,
    states_read,
    text_flops,
    weights_read_per_step,
)
from benchmark_plan import OURS, Plan
from safetensors.torch import load_file
from torch import nn

INPUTS_FILE = "inputs.safetensors"

Tensors = dict[str, torch.Tensor]


class Side(Protocol):
    """The names that both libraries have, so that the same code can measure either."""

    __name__: str
    MusicgenForCausalLM: Any
    MusicgenForConditionalGeneration: Any
    EncodecModel: Any
    T5EncoderModel: Any


class Task(ABC):
    """One case with one library: the constructor loads model and inputs, `run` is timed."""

    model_class: ClassVar[str]
    folder: ClassVar[str]

    def __init__(self, side: Side, plan: Plan, root: Path) -> None:
        self.plan = plan
        model_class = getattr(side, self.model_class)
        self.model = model_class.from_pretrained(root / self.folder, dtype=self.weights_dtype(plan))
        self.model = self.model.to(plan.device).eval()
        self.inputs: Tensors = {
            name: value.to(plan.device, self.model.dtype if value.is_floating_point() else None)
            for name, value in load_file(root / self.folder / INPUTS_FILE).items()
        }

    @staticmethod
    def precision(plan: Plan) -> torch.dtype:
        """The dtype of the computation."""
        return plan.dtype

    @classmethod
    def weights_dtype(cls, plan: Plan) -> torch.dtype:
        """The dtype of the weights."""
        return cls.precision(plan)

    def reset(self) -> None:  # noqa: B027 - most cases need none
        """Undo the effects of the run before; not timed."""

    @abstractmethod
    def run(self) -> None:
        """Run the case once; this is timed."""

    @abstractmethod
    def results(self) -> Tensors:
        """The results of the last run, which are compared: integers must be equal, other values close."""

    @staticmethod
    @abstractmethod
    def title(plan: Plan) -> str:
        """The title of the row."""

    @staticmethod
    @abstractmethod
    def work(plan: Plan) -> Work | None:
        """The work of one run; None if a rate would be meaningless."""


class DecoderTask(Task):
    """A case with only the decoder, on whole sequences."""

    model_class, folder = "MusicgenForCausalLM", "decoder"
    name: ClassVar[str]

    def __init__(self, side: Side, plan: Plan, root: Path) -> None:
        super().__init__(side, plan, root)
        if plan.compile:
            for layer in self.model.model.decoder.layers:
                layer.compile()

    @classmethod
    def title(cls, plan: Plan) -> str:
        compiled = ", compiled" if plan.compile else ""
        return f"{cls.name}, {plan.batch} x {plan.frames} frames, {plan.size.text_length} text states{compiled}"


class Forward(DecoderTask):
    """Computes logits, as validation does."""

    name = "decoder forward"

    @torch.no_grad()
    def run(self) -> None:
        self.logits = self.model(
            input_ids=self.inputs["input_ids"],
            encoder_hidden_states=self.inputs["text_states"],
            encoder_attention_mask=self.inputs["text_mask"],
            use_cache=False,
        ).logits

    def results(self) -> Tensors:
        return {"logits": self.logits}

    @staticmethod
    def work(plan: Plan) -> Work:
        return Work(plan.batch * plan.frames, "frames/s", flops=forward_flops(plan))


class TrainStep(DecoderTask):
    """Runs forward, backward and a fused AdamW step; in bfloat16 under autocast."""

    name = "train step"

    def __init__(self, side: Side, plan: Plan, root: Path) -> None:
        super().__init__(side, plan, root)
        self.model.train()
        if side.__name__ == OURS and plan.device == "cpu":
            importlib.import_module(f"{OURS}.training.host_memory").keep_freed_memory()  # as a run does
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    @classmethod
    def weights_dtype(cls, plan: Plan) -> torch.dtype:
        return torch.float32

    def run(self) -> None:
        # Before and not after the step, so that the gradients can be compared.
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.plan.device, torch.bfloat16, enabled=self.plan.dtype == torch.bfloat16):
            self.loss = self.model(
                labels=self.inputs["labels"],
                encoder_hidden_states=self.inputs["text_states"],
                encoder_attention_mask=self.inputs["text_mask"],
                use_cache=False,
            ).loss
        self.loss.backward()
        self.optimizer.step()

    def results(self) -> Tensors:
        norms = [parameter.grad.norm() for parameter in self.model.parameters() if parameter.grad is not None]
        return {"loss": self.loss.detach(), "gradient norm": torch.stack(norms).norm()}

    @staticmethod
    def work(plan: Plan) -> Work:
        # The backward pass has two products for each: with respect to inputs and to weights.
        return Work(plan.batch * plan.frames, "frames/s", flops=3 * forward_flops(plan))


class Generate(Task):
    """Generates greedily with guidance, from token ids to audio; the codes are recorded where they enter the codec."""

    model_class, folder = "MusicgenForConditionalGeneration", "composite"
    rows: ClassVar[int]

    def __init__(self, side: Side, plan: Plan, root: Path) -> None:
        super().__init__(side, plan, root)
        decode = self.model.audio_encoder.decode

        def keep_codes(audio_codes: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            self.codes = audio_codes
            return decode(audio_codes, *arguments, **options)

        self.model.audio_encoder.decode = keep_codes

    def run(self) -> None:
        self.model.generate(
            input_ids=self.inputs["input_ids"][: self.rows],
            attention_mask=self.inputs["attention_mask"][: self.rows],
            do_sample=False,
            guidance_scale=3.0,
            max_new_tokens=self.plan.new_tokens,
        )

    def results(self) -> Tensors:
        return {"codes": self.codes}

    @classmethod
    def title(cls, plan: Plan) -> str:
        return f"generate with guidance, batch {cls.rows}, {plan.new_frames} frames"

    @classmethod
    def work(cls, plan: Plan) -> Work:
        numbers = weights_read_per_step(plan) * plan.new_tokens + states_read(plan, cls.rows)
        return Work(cls.rows * plan.new_frames, "frames/s", bytes_read=numbers * plan.dtype.itemsize)


class GenerateOne(Generate):
    rows = 1


class GenerateEight(Generate):
    rows = 8


class GenerateSixtyFour(Generate):
    rows = 64


class CodecTask(Task):
    """A case with only the codec."""

    model_class, folder = "EncodecModel", "codec"
    name: ClassVar[str]

    @staticmethod
    def precision(plan: Plan) -> torch.dtype:
        return torch.float32

    @classmethod
    def title(cls, plan: Plan) -> str:
        return f"{cls.name}, {plan.size.audio_seconds:g} s, float32"


class Encode(CodecTask):
    """Encodes audio."""

    name = "EnCodec encode"

    @torch.no_grad()
    def run(self) -> None:
        self.codes = self.model.encode(self.inputs["audio"]).audio_codes

    def results(self) -> Tensors:
        return {"codes": self.codes}

    @staticmethod
    def work(plan: Plan) -> Work:
        return Work(plan.size.audio_seconds, "x real time", flops=codec_flops(plan) + search_flops(plan))


class Decode(CodecTask):
    """Decodes codes."""

    name = "EnCodec decode"

    @torch.no_grad()
    def run(self) -> None:
        self.audio = self.model.decode(self.inputs["codes"], [None]).audio_values

    def results(self) -> Tensors:
        return {"audio": self.audio}

    @staticmethod
    def work(plan: Plan) -> Work:
        return Work(plan.size.audio_seconds, "x real time", flops=codec_flops(plan))


class EncodeText(Task):
    """Encodes token ids. States at padding are arbitrary and not compared."""

    model_class, folder = "T5EncoderModel", "text_encoder"

    @torch.no_grad()
    def run(self) -> None:
        self.states = self.model(
            input_ids=self.inputs["input_ids"], attention_mask=self.inputs["attention_mask"]
        ).last_hidden_state

    def results(self) -> Tensors:
        return {"states": self.states[self.inputs["attention_mask"].bool()]}

    @staticmethod
    def title(plan: Plan) -> str:
        return f"T5 encode, {plan.size.texts} texts of {plan.size.tokens} tokens"

    @staticmethod
    def work(plan: Plan) -> Work:
        return Work(plan.size.texts * plan.size.tokens, "tokens/s", flops=text_flops(plan))


class Load(Task):
    """Loads the composite and reads every weight once, since a weight that is only memory-mapped is not loaded yet."""

    model_class, folder = "MusicgenForConditionalGeneration", "composite"

    def __init__(self, side: Side, plan: Plan, root: Path) -> None:
        self.plan = plan
        self.load = functools.partial(
            getattr(side, self.model_class).from_pretrained, root / self.folder, dtype=self.weights_dtype(plan)
        )
        self.model: nn.Module | None = None

    def reset(self) -> None:
        self.model = None

    @torch.no_grad()
    def run(self) -> None:
        self.model = cast(nn.Module, self.load().to(self.plan.device))
        parameters = dict(self.model.named_parameters())
        self.sums = torch.stack([parameters[name].sum(dtype=torch.float32) for name in sorted(parameters)])

    def results(self) -> Tensors:
        return {"sums of weights": self.sums}

    @staticmethod
    def title(plan: Plan) -> str:
        return "load the composite from a folder, read each weight"

    @staticmethod
    def work(plan: Plan) -> None:
        return None


TASKS: dict[str, type[Task]] = {
    "forward": Forward,
    "train": TrainStep,
    "generate-1": GenerateOne,
    "generate-8": GenerateEight,
    "generate-64": GenerateSixtyFour,
    "encode": Encode,
    "decode": Decode,
    "text": EncodeText,
    "load": Load,
}
