"""What a potential knows before it has learned anything: that nuclei repel.

Data hold few frames with atoms much closer than a bond, and a network may say anything there. A
simulation that once gets in falls through. So the wall is built in, and below the shortest length
that a pair of elements has had in training, its length is nothing that was learned: `Floor`.
"""

from collections.abc import Mapping

import torch
from ase.data import atomic_numbers, covalent_radii
from torch import Tensor, nn

from mlpot.graph import Graph
from mlpot.models.layers import Envelope, sum_over_edges
from mlpot.units import BOHR_TO_ANGSTROM, COULOMB

#: share of the sum of covalent radii at which the wall ends: less than every stable bond (N2:
#: 0.77 at 1.10 Å; CO: 0.79), so that nothing has to be unlearned there
REACH = 0.8

#: amplitudes and decays (per screening length) of the universal screening function
SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))


#: Å below the floor of a pair, over which learned features stop to follow a pair
FADE = 0.1


class Floor(nn.Module):
    """Edge vectors as learned features see them: no shorter than the shortest known length b of a
    pair of elements. From b on nothing is changed; below, the slope of the length that is seen
    falls to zero within `FADE`, as the quintic smoothstep, so that it never is below b - FADE / 2.

    Args:
        floors: b in Å, by pair ("H-C"). Of pairs that are not named, the sum of covalent radii.
        max_number: atomic numbers below this.
    """

    def __init__(self, floors: Mapping[str, float], max_number: int = 100):
        super().__init__()
        table = floor_table(floors, max_number)
        self.register_buffer("table", table.to(torch.get_default_dtype()), persistent=False)
        self.table: Tensor

    def forward(self, graph: Graph, vectors: Tensor) -> Tensor:
        """[E, 3] Å -> [E, 3] Å"""
        distance = torch.sqrt((vectors * vectors).sum(dim=1))
        floor = of_pairs(self.table, graph)
        t = (1.0 + (distance - floor) / FADE).clamp(min=0.0, max=1.0)
        t2 = t * t
        risen = t2 * t2 * (2.5 - t * (3.0 - t))  # integral of the smoothstep, 1/2 at t = 1
        seen = floor + torch.relu(distance - floor) + FADE * (risen - 0.5)
        return vectors * (seen / distance).unsqueeze(1)


def floor_table(floors: Mapping[str, float], max_number: int) -> Tensor:
    """b of every pair of atomic numbers, [Z, Z] Å, float64."""
    table = bond_lengths(max_number)
    for pair, length in floors.items():
        a, b = (atomic_numbers[symbol] for symbol in pair.split("-"))
        table[a, b] = table[b, a] = length
    return table


def bond_lengths(max_number: int) -> Tensor:
    """Sums of covalent radii, [Z, Z] Å, float64."""
    radii = torch.from_numpy(covalent_radii[:max_number].copy())
    return radii[:, None] + radii[None, :]


def of_pairs(table: Tensor, graph: Graph) -> Tensor:
    """Entries [E] of a table [Z, Z] for the elements of every edge."""
    sender, receiver = graph.edge_index.unbind(0)
    first, second = graph.numbers.index_select(0, sender), graph.numbers.index_select(0, receiver)
    return table.flatten().index_select(0, first * table.shape[1] + second)


class ZBL(nn.Module):
    """Screened nuclear repulsion of Ziegler, Biersack and Littmark (The Stopping and Range of Ions
    in Matter, 1985), times a C2 envelope that ends at `REACH` times the sum of the covalent radii
    (Cordero et al., Dalton Trans. 2832 (2008), as in ASE), or where `Floor` begins if that is
    farther out.

    Args:
        max_number: atomic numbers below this.
        floors: as `Floor` takes it.
    """

    def __init__(self, max_number: int = 100, floors: Mapping[str, float] | None = None):
        super().__init__()
        numbers = torch.arange(max_number, dtype=torch.float64)
        # columns: Z, inverse screening length (1/Å); code, so not among the weights
        screening = numbers**0.23 / (0.8854 * BOHR_TO_ANGSTROM)
        table = torch.stack([numbers, screening], dim=1)
        reach = REACH * bond_lengths(max_number)
        if floors:
            reach = torch.maximum(reach, floor_table(floors, max_number))
        self.register_buffer("table", table.to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("reach", reach.to(torch.get_default_dtype()), persistent=False)
        self.table: Tensor
        self.reach: Tensor
        self.envelope = Envelope(1.0)

    def forward(self, graph: Graph, vectors: Tensor) -> Tensor:
        """Energy of every atom [N] eV; vectors [E, 3] Å."""
        distance = torch.sqrt((vectors * vectors).sum(dim=1))
        atoms = self.table.index_select(0, graph.numbers)
        first, second = (atoms.index_select(0, end).unbind(1) for end in graph.edge_index.unbind(0))
        x = distance * (first[1] + second[1])
        screened = torch.zeros_like(x)
        for amplitude, decay in SCREENING:  # as in layers.py, no subnormal numbers
            screened = screened + amplitude * torch.exp((-decay * x).clamp(min=-60.0))
        energy = COULOMB * first[0] * second[0] / distance * screened
        energy = energy * self.envelope(distance / of_pairs(self.reach, graph))
        # every pair is there in both directions
        return 0.5 * sum_over_edges(energy, graph.edge_index[1], graph.numbers.shape[0])
