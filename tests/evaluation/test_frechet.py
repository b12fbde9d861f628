"""The Frechet distance against closed forms, and its properties."""

from __future__ import annotations

import math

import pytest
import torch

from musicgen_train.evaluation.tables import frechet_table
from musicgen_train.metrics.embedders import load_embedder
from musicgen_train.metrics.frechet import Gaussian, frechet_distance


def gaussian(mean: torch.Tensor, covariance: torch.Tensor) -> Gaussian:
    return Gaussian(mean.double(), covariance.double(), 100)


def random_covariance(width: int, rank: int) -> torch.Tensor:
    factor = torch.randn(width, rank, dtype=torch.float64)
    return factor @ factor.T


def test_diagonal_covariances_have_a_closed_form() -> None:
    a_std, b_std = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 0.25, 0.5])
    a_mean, b_mean = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([2.0, 1.0, 1.0])
    a, b = gaussian(a_mean, torch.diag(a_std**2)), gaussian(b_mean, torch.diag(b_std**2))
    expected = (a_mean - b_mean).square().sum() + (a_std - b_std).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-12)


def test_one_dimension_by_hand() -> None:
    # Means 1 and 4, standard deviations 2 and 5: 9 + 9.
    a, b = (gaussian(torch.tensor([m]), torch.tensor([[s * s]])) for m, s in ((1.0, 2.0), (4.0, 5.0)))
    assert frechet_distance(a, b) == pytest.approx(18.0)


@pytest.mark.parametrize("rank", [7, 3])  # full, and with directions of no spread
def test_general_covariances_against_the_nonsymmetric_form(rank: int) -> None:
    a, b = gaussian(torch.randn(7), random_covariance(7, rank)), gaussian(torch.randn(7), random_covariance(7, rank))
    # tr (C_a C_b)^1/2 is the sum of the roots of the eigenvalues of the product itself, by a general solver.
    roots = torch.linalg.eigvals(a.covariance @ b.covariance).real.clamp(min=0).sqrt().sum()
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * roots
    # Eigenvalues that are 0 come out as 1e-15, whose roots are 3e-8.
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)


def test_it_is_a_distance() -> None:
    a, b = (Gaussian.fit(torch.randn(50, 6) @ torch.randn(6, 6) + shift) for shift in (0.0, 1.0))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) > 1


def test_a_shift_costs_its_square() -> None:
    values = torch.randn(40, 5)
    shift = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0])
    a, b = Gaussian.fit(values), Gaussian.fit(values + shift)
    assert frechet_distance(a, b) == pytest.approx(shift.square().sum().item(), rel=1e-6)


def test_samples_of_known_gaussians() -> None:
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(40_000, 2, generator=generator) * torch.tensor([1.0, 3.0])
    b = torch.randn(40_000, 2, generator=generator) * torch.tensor([2.0, 1.0]) + torch.tensor([1.0, 0.0])
    assert frechet_distance(Gaussian.fit(a), Gaussian.fit(b)) == pytest.approx(1 + 1 + 4, rel=0.05)


def test_fit_by_hand() -> None:
    fitted = Gaussian.fit(torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]]))
    assert fitted.mean.tolist() == [3.0, 3.0]
    # Deviations (-2, -1), (0, 3), (2, -2), divided by 2.
    assert fitted.covariance.tolist() == [[4.0, -1.0], [-1.0, 7.0]]
    assert fitted.count == 3
    assert Gaussian.fit(torch.tensor([[1.0], [3.0]])).covariance.tolist() == [[2.0]]


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="a count of 2 or more"):
        Gaussian.fit(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="not finite"):
        Gaussian.fit(torch.tensor([[0.0, math.nan], [0.0, 0.0]]))
    a, b = Gaussian.fit(torch.zeros(3, 4)), Gaussian.fit(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="width 4 and of width 5"):
        frechet_distance(a, b)


def test_too_little_audio_is_said_and_not_an_error() -> None:
    embedder = load_embedder("log-mel-statistics")
    short, long = [torch.randn(1, 8000)], [torch.randn(1, 320_000)]
    table = frechet_table(embedder, long, {"generated": short}, 32_000, "the clips")
    assert "generated" not in [row.label for row in table.rows]
    assert table.findings[0] == "Too little audio for a distance: generated. Take more or longer clips."
    assert frechet_table(embedder, short, {"generated": long}, 32_000, "the clips").rows == []
