"""The decoder's layer norm."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class LayerNorm(nn.LayerNorm):
    """torch's, also for float32 states and weights in half precision, as sharding hands them out.

    A GPU takes both to float32 under autocast; a CPU's kernel refuses the mixture.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if states.dtype == torch.float32 and self.weight.dtype != torch.float32:
            return F.layer_norm(states, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return super().forward(states)
