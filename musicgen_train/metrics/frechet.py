"""The Frechet distance between two sets of embeddings, each taken for a Gaussian (Dowson & Landau 1982).

With embeddings of audio this is the Frechet audio distance (Kilgour et al. 2019).

Axes: N embeddings, D their width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Gaussian:
    """Mean `(D,)` and covariance `(D, D)` of a set of embeddings, float64, and how many there were."""

    mean: torch.Tensor
    covariance: torch.Tensor
    count: int

    @classmethod
    def fit(cls, embeddings_ND: torch.Tensor) -> Gaussian:
        """Mean and unbiased covariance of embeddings `(count, width)`.

        Raises:
            ValueError: fewer than two embeddings, or one that is not finite.
        """
        if embeddings_ND.dim() != 2 or len(embeddings_ND) < 2:
            raise ValueError(
                f"embeddings are {list(embeddings_ND.shape)}; a Frechet distance needs (count, width) with a count of 2"
                " or more: take more or longer clips"
            )
        if not embeddings_ND.isfinite().all():
            raise ValueError("embeddings hold values that are not finite")
        values = embeddings_ND.double().cpu()
        # torch.cov gives a number instead of a matrix for width 1.
        return cls(values.mean(dim=0), torch.atleast_2d(values.T.cov()), len(values))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """`|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)`: 0 for equal ones, and never below 0.

    Raises:
        ValueError: the widths differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"embeddings of width {len(a.mean)} and of width {len(b.mean)} cannot be compared")
    root = _symmetric_root(a.covariance)
    # The trace of a matrix root is the sum of the roots of the eigenvalues. Rounding makes zeros negative.
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, ((a.mean - b.mean).square().sum() + spread).item())


def _symmetric_root(matrix_DD: torch.Tensor) -> torch.Tensor:
    eigenvalues, vectors = torch.linalg.eigh(matrix_DD)
    return (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T
