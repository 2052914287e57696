"""FIRE, for many molecules at once: each goes downhill at its own pace.

Bitzek, Koskinen, Gähler, Moseler, Gumbsch, Phys. Rev. Lett. 97, 170201 (2006), with the
parameters of that paper. It takes out bad contacts before dynamics, not more.
"""

from collections.abc import Callable

import torch
from torch import Tensor

#: Å, the longest way of an atom in one iteration
MAX_MOVE = 0.1

_START, _LONGEST = 0.1, 1.0  # time steps; masses are 1, so these have no unit of time
_PATIENCE, _FASTER, _SLOWER = 5, 1.1, 0.5
_MIXING, _MIXING_DECAY = 0.1, 0.99


def fire(
    forces: Callable[[Tensor], Tensor],
    positions: Tensor,
    owner: Tensor,
    count: int,
    iterations: int,
    fmax: float = 0.1,
) -> Tensor:
    """Positions [N, 3] Å further downhill.

    Args:
        forces: positions [N, 3] -> forces [N, 3] eV/Å of all molecules.
        owner: [N] int64, which molecule an atom belongs to.
        count: number of molecules.
        iterations: at most.
        fmax: eV/Å; a molecule rests where no force on it is larger. One whose forces become
            NaN rests too.
    """
    x, v = positions, torch.zeros_like(positions)
    dt = x.new_full((count,), _START)
    mixing = x.new_full((count,), _MIXING)
    uphill_free = x.new_zeros(count)  # iterations since the last uphill one

    def per_molecule(values: Tensor) -> Tensor:
        return values.new_zeros(count).index_add(0, owner, values)

    for _ in range(iterations):
        f = forces(x)
        strongest = torch.linalg.vector_norm(f, dim=1)
        largest = x.new_zeros(count).scatter_reduce(0, owner, strongest, "amax")
        active = (largest > fmax) & torch.isfinite(largest)
        if not bool(active.any()):
            break
        f = torch.where(active[owner, None], f, torch.zeros_like(f))
        downhill = per_molecule((f * v).sum(1)) > 0
        uphill_free = torch.where(downhill, uphill_free + 1, torch.zeros_like(uphill_free))
        patient = uphill_free > _PATIENCE
        dt = torch.where(patient, (dt * _FASTER).clamp(max=_LONGEST), dt)
        dt = torch.where(downhill, dt, dt * _SLOWER)
        steer = (per_molecule((v * v).sum(1)) / per_molecule((f * f).sum(1)).clamp(1e-30)).sqrt()
        a = mixing[owner, None]
        v = torch.where(downhill[owner, None], (1 - a) * v + a * steer[owner, None] * f, 0.0 * v)
        mixing = torch.where(patient, mixing * _MIXING_DECAY, mixing)
        mixing = torch.where(downhill, mixing, torch.full_like(mixing, _MIXING))
        v = torch.where(active[owner, None], v + dt[owner, None] * f, torch.zeros_like(v))
        move = dt[owner, None] * v
        longest = torch.linalg.vector_norm(move, dim=1, keepdim=True)
        x = x + move * (MAX_MOVE / longest.clamp(min=MAX_MOVE))
    return x
