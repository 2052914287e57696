"""Covariances that are rounded: distances that hardly change, and a state that does not."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from mlpot.models.whitening import Whitening


def covariances(kinds: int, width: int, spread: float = 3.0, rare: float = 1.0) -> Tensor:
    """Related and ill-conditioned, as those of hidden layers, whose scales differ by 10**spread;
    the last is ``rare`` times as large."""
    random = torch.Generator().manual_seed(kinds)
    scales = 10.0 ** torch.linspace(-spread, 0, width, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(width, width, generator=random, dtype=torch.float64))[0]
    made = []
    for k in range(kinds):
        own = torch.eye(width) + 0.3 * torch.randn(width, width, generator=random)
        factor = turn @ torch.diag(scales) @ own.double()
        made.append(factor @ factor.T * (rare if k == kinds - 1 else 1.0))
    return torch.stack(made)


def off(whitening: Whitening, given: Tensor) -> Tensor:
    """Relative errors of distances of points of these covariances, [K, N]."""
    random = torch.Generator().manual_seed(len(given))
    points = torch.randn(len(given), given.shape[1], 500, generator=random).double()
    centred = torch.linalg.cholesky(given) @ points
    exact = torch.einsum("kin,kij,kjn->kn", centred, torch.linalg.inv(given), centred).sqrt()
    found = whitening(centred.transpose(1, 2).to(whitening.lower)).norm(dim=2)
    return found / exact - 1


@pytest.mark.parametrize("kinds", [1, 3, 10])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_distances_change_by_half_a_percent(kinds: int, size: float) -> None:
    """Root mean square, whatever the size of the features is: steps of 1/64 are off by 0.0045
    (uniform), times at most sqrt(kinds / 2). No point of thousands is off by five times that."""
    given = size**2 * covariances(kinds, 24)
    whitening = Whitening(kinds, 24).double()
    whitening.set(given)
    errors = off(whitening, given)
    assert errors.square().mean().sqrt() < 0.006 and errors.abs().max() < 0.03
    assert errors.abs().max() > 1e-6  # it is rounded
    again = off(whitening.float(), given)
    assert again.square().mean().sqrt() < 0.006


def test_one_element_that_varies_much_more_spoils_no_other() -> None:
    """Twice what steps of 1/64 may add in all directions of four elements, 0.009."""
    given = covariances(4, 16, rare=1e4)
    whitening = Whitening(4, 16).double()
    whitening.set(given)
    assert off(whitening, given).square().mean(1).sqrt().max() < 0.02


def test_features_that_are_collinear_but_for_rounding() -> None:
    """Float16 cannot hold what would turn them into 1. Other directions are rounded twice here."""
    given = covariances(3, 8, spread=0.5)
    given[:, 7] = given[:, 6]
    given[:, :, 7] = given[:, :, 6]
    given += 1e-12 * torch.eye(8)
    whitening = Whitening(3, 8).double()
    whitening.set(given)
    assert torch.isfinite(whitening.lower).all()
    other = Whitening(3, 7).double()
    other.set(given[:, :7, :7])
    points = torch.randn(3, 50, 7, generator=torch.Generator().manual_seed(1)).double()
    doubled = torch.cat([points, points[..., 6:]], dim=2)
    expected = other(points).norm(dim=2)
    assert (whitening(doubled).norm(dim=2) / expected - 1).abs().max() < 0.05


def test_elements_that_are_alike_are_told_alike() -> None:
    given = covariances(1, 20, spread=1.0).expand(5, -1, -1)
    whitening = Whitening(5, 20).double()
    whitening.set(given)
    assert (whitening.steps.abs() <= 1).all()  # all is in the basis
    assert all(torch.equal(whitening.steps[0], row) for row in whitening.steps)


def test_covariances_are_one_until_others_are_told() -> None:
    centred = torch.randn(3, 7, 5)
    assert torch.equal(Whitening(3, 5)(centred), centred)


def test_what_an_older_file_holds_is_the_same_covariance() -> None:
    given = covariances(3, 12)
    factors = torch.linalg.inv(torch.linalg.cholesky(given))
    below = np.tril_indices(12)
    one, other = Whitening(3, 12).double(), Whitening(3, 12).double()
    one.set(given)
    other.set_lower(factors[:, below[0], below[1]])
    assert (one.steps - other.steps).abs().max() <= 1
    torch.testing.assert_close(
        one.lower, other.lower, rtol=0.02, atol=0.02 * float(one.lower.max())
    )


def test_the_state_gives_back_what_was_rounded() -> None:
    """Also inside another module, where parameters are loaded without calling its own method."""
    given = covariances(3, 12)
    whole = torch.nn.ModuleDict({"w": Whitening(3, 12)})
    whole["w"].double().set(given)  # type: ignore[operator]
    other = torch.nn.ModuleDict({"w": Whitening(3, 12)})
    other.load_state_dict(whole.float().state_dict())
    assert torch.equal(whole["w"].lower, other["w"].lower)
    for same in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert torch.equal(same["w"].lower, other["w"].lower)


def test_covariances_that_are_none() -> None:
    with pytest.raises(RuntimeError, match="positive-definite"):
        Whitening(1, 2).set(torch.tensor([[[1.0, 2.0], [2.0, 1.0]]]))
