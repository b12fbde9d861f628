"""In which floating-point types a run computes."""

from __future__ import annotations

import torch

AUTO = "auto"


def resolve_precision(precision: str, accelerator: str) -> str:
    """Lightning's name of the precision to train in.

    Args:
        precision: one of Lightning's names, which is taken as it is, or `auto`: bf16-mixed on a GPU that has bfloat16
            in hardware (compute capability 8.0, "Ampere", and up), else 32-true. fp16 is never chosen: its gradients
            overflow.
        accelerator: as Lightning names it.
    """
    if precision != AUTO:
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        # False: emulated bfloat16 does not count.
        return "bf16-mixed" if torch.cuda.is_bf16_supported(False) else "32-true"
    return "32-true"
