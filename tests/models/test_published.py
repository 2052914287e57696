"""Published weights and PyG's own ViSNet give the published numbers in mlpot."""

from pathlib import Path
from types import MethodType

import numpy as np
import pytest
import torch
from ase.build import molecule
from torch import Tensor

from mlpot.errors import ModelFileError
from mlpot.graph import edge_vectors
from mlpot.models.heads import EnergyHead
from mlpot.models.potential import Potential
from mlpot.models.published import (
    convert_backbone,
    convert_energy_head,
    load_geom2vec_visnet,
    published_config,
)
from mlpot.models.visnet import ViSNet, ViSNetConfig
from mlpot.neighbors import brute_force, build_graph

MOLECULES = ["ala_dipeptide", "aspirin", "caffeine", "ethanol", "nma", "thiazole_cl"]
CUTOFF = 7.5


@pytest.fixture(scope="module")
def weights(shared: Path) -> Path:
    return shared / "weights/geom2vec/visnet_l6_h64_rbf64_r75.pth"


@pytest.fixture(scope="module")
def published(weights: Path):
    backbone, head = load_geom2vec_visnet(weights)
    return backbone.double(), head.double()


@pytest.mark.parametrize("name", MOLECULES)
def test_geom2vec_parity(name: str, published, shared: Path) -> None:
    """x, vec, noise and the gradient of sum(x), as the original code gives them."""
    backbone, head = published
    with np.load(shared / "parity/geom2vec/visnet_l6_h64_rbf64_r75.npz") as file:
        assert sorted({key.split("/")[0] for key in file.files}) == MOLECULES
        data = {key.split("/")[1]: file[key] for key in file.files if key.startswith(f"{name}/")}
    graph = build_graph(data["z"], data["pos"], CUTOFF, dtype=torch.float64)
    graph = graph._replace(positions=graph.positions.requires_grad_(True))
    features = backbone(graph, edge_vectors(graph))
    gradient = torch.autograd.grad(features.scalar.sum(), graph.positions, retain_graph=True)[0]
    for key, got in (
        ("x", features.scalar),
        ("vec", features.vector),
        ("noise", head(features)),
        ("grad_sum_x", gradient),
    ):
        assert np.abs(data[key]).max() > 1e-3
        np.testing.assert_allclose(got.detach(), data[key], atol=1e-8, rtol=0, err_msg=key)


def test_truncated_weights(weights: Path, tmp_path: Path) -> None:
    content = weights.read_bytes()
    for size in (0, 100, len(content) // 2, len(content) - 1000):
        short = tmp_path / f"short_{size}.pth"
        short.write_bytes(content[:size])
        with pytest.raises(ModelFileError, match="truncated.*download"):
            load_geom2vec_visnet(short)


class Payload:
    """Anything that would run code when unpickled."""


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "object.pth"
    torch.save({"representation_model.vis_mp_layers.0.q_proj.weight": Payload()}, path)
    with pytest.raises(ModelFileError, match="pickled"):
        load_geom2vec_visnet(path)


def test_other_weights_are_refused(tmp_path: Path, shared: Path) -> None:
    with pytest.raises(ModelFileError, match="holds no geom2vec ViSNet"):
        load_geom2vec_visnet(shared / "weights/geom2vec/tensornet_l3_h64_rbf32_r5.pth")
    path = tmp_path / "empty.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ModelFileError, match="holds no geom2vec ViSNet"):
        load_geom2vec_visnet(path)
    with pytest.raises(ModelFileError, match="nowhere"):
        load_geom2vec_visnet(tmp_path / "nowhere.pth")


# --- torch_geometric's ViSNet --------------------------------------------------------------


def all_pairs(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """PyG's Distance without its compiled radius_graph; self-loops included, like there."""
    pairs = torch.as_tensor(brute_force(pos.detach().numpy(), self.cutoff)[0])
    loops = torch.arange(len(pos)).repeat(2, 1)
    edge_index = torch.cat([pairs, loops], dim=1)
    vectors = pos[edge_index[0]] - pos[edge_index[1]]
    weight = torch.zeros(len(vectors), dtype=pos.dtype)
    apart = edge_index[0] != edge_index[1]
    weight[apart] = torch.norm(vectors[apart], dim=-1)
    return edge_index, weight, vectors


@pytest.mark.parametrize("lmax", [1, 2])
@pytest.mark.parametrize("norm", [None, "max_min"])
def test_pyg_parity(lmax: int, norm: str | None) -> None:
    """Same energies and forces as torch_geometric with the same random weights."""
    pyg = pytest.importorskip("torch_geometric.nn.models")
    theirs = pyg.ViSNet(
        lmax=lmax,
        vecnorm_type=norm,
        trainable_vecnorm=True,
        num_layers=4,
        hidden_channels=32,
        num_rbf=16,
        trainable_rbf=True,
        max_z=20,
        cutoff=4.0,
        derivative=True,
    )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "prior_model" not in name and "distance_expansion" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    theirs = theirs.double()
    distance = theirs.representation_model.distance
    distance.forward = MethodType(all_pairs, distance)

    state = theirs.state_dict()
    body = {
        key.removeprefix("representation_model."): value
        for key, value in state.items()
        if key.startswith("representation_model.")
    }
    config = published_config(body, cutoff=4.0, vector_norm=norm or "none")
    config = ViSNetConfig(**{**config.model_dump(), "lmax": lmax})
    backbone, head = ViSNet(config), EnergyHead(config.channels, softening=0.0)
    ours = Potential(backbone, head, {number: 0.0 for number in range(1, 20)}).double().eval()
    backbone.load_state_dict(convert_backbone(body, config))
    head.load_state_dict(convert_energy_head(state))

    for formula in ("CH3CH2OH", "C6H6", "CH3CONH2", "C4H4S", "H2O"):
        atoms = molecule(formula)
        atoms.rattle(0.1, seed=1)
        graph = build_graph(atoms.numbers, atoms.positions, 4.0, dtype=torch.float64)
        energy, forces = theirs(graph.numbers, graph.positions.clone(), graph.batch)
        prediction = ours(graph)
        assert forces.abs().max() > 1e-3
        assert prediction.interaction.item() == pytest.approx(energy.item(), abs=1e-10)
        np.testing.assert_allclose(prediction.forces, forces.detach(), atol=1e-10, rtol=0)
