"""What a potential knows before it has learned anything: that nuclei repel.

Data hold few frames with atoms much closer than a bond, and a network may say anything there. A
simulation that once gets in falls through. So the wall is built in.
"""

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from mlpot.graph import Graph
from mlpot.models.layers import Envelope, sum_over_edges
from mlpot.units import BOHR_TO_ANGSTROM, COULOMB

#: share of the sum of covalent radii at which the wall ends: less than every stable bond (N2:
#: 0.77 at 1.10 Å; CO: 0.79), so that nothing has to be unlearned there
REACH = 0.8

#: amplitudes and decays (per screening length) of the universal screening function
SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))


class ZBL(nn.Module):
    """Screened nuclear repulsion of Ziegler, Biersack and Littmark (The Stopping and Range of Ions
    in Matter, 1985), times a C2 envelope that ends at `REACH` times the sum of the covalent radii
    (Cordero et al., Dalton Trans. 2832 (2008), as in ASE).

    Args:
        max_number: atomic numbers below this.
    """

    def __init__(self, max_number: int = 100):
        super().__init__()
        numbers = torch.arange(max_number, dtype=torch.float64)
        radii = torch.from_numpy(covalent_radii[:max_number].copy())
        # columns: Z, inverse screening length (1/Å), reach (Å); code, so not among the weights
        screening = numbers**0.23 / (0.8854 * BOHR_TO_ANGSTROM)
        table = torch.stack([numbers, screening, REACH * radii], dim=1)
        self.register_buffer("table", table.to(torch.get_default_dtype()), persistent=False)
        self.table: Tensor
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
        energy = energy * self.envelope(distance / (first[2] + second[2]))
        # every pair is there in both directions
        return 0.5 * sum_over_edges(energy, graph.edge_index[1], graph.numbers.shape[0])
