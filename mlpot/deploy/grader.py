"""Graders: how far atoms are from what a model was trained on, whatever engine runs the model.

The features of an atom are read from the eager network, without gradients, so a grader has the
weights a second time and is asked every few steps.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mlpot.deploy.engines import DeployedModel
from mlpot.deploy.load import load
from mlpot.deploy.metadata import check_system
from mlpot.errors import InputError, ModelFileError
from mlpot.graph import Graph, edge_vectors, to
from mlpot.models.checkpoint import ModelInfo, load_extrapolation, load_potential
from mlpot.models.coverage import Pair
from mlpot.models.extrapolation import grade
from mlpot.neighbors import SKIN, NeighborFinder, build_graph
from mlpot.zoo import resolve

#: root-mean-square force errors of held-back frames, at grade 1 of a committee
LARGE = 3.0


class Grader:
    """Base of what grades atoms; 1 is the line. A grader defines `grades`.

    Attributes:
        info: description of the model.
        cutoff: Å.
        sees_lengths: whether it knows which lengths of pairs are usual: then `length_grades` gives
            that part of the grades.
        committee: names of the models whose disagreement counts, and the unit of it (eV/Å), for a
            log; None if there is no committee.
    """

    sees_lengths = False
    committee: dict[str, Any] | None = None

    def __init__(self, info: ModelInfo, cutoff: float, dtype: torch.dtype, device: torch.device):
        self.info, self.cutoff, self.dtype, self.device = info, cutoff, dtype, device

    def grades(self, graph: Graph) -> Tensor:
        """Grades [N] of any batch of structures; infinite where something became NaN."""
        raise NotImplementedError

    def length_grades(self, graph: Graph) -> Tensor:
        """The part of the grades [N] that is due to the lengths of pairs; needs no network."""
        return torch.zeros(len(graph.numbers))

    def torn(self, graph: Graph, atom: int) -> Pair | None:
        """The length, hardly ever seen, that is reason enough for the grade of an atom."""
        return None

    def bind(
        self, numbers: ArrayLike, pbc: bool | Sequence[bool] = False, skin: float = SKIN
    ) -> "BoundGrader":
        """Fix the atoms once, as `DeployedModel.bind` does."""
        periodic = (pbc,) * 3 if isinstance(pbc, bool) else tuple(bool(p) for p in pbc)
        return BoundGrader(self, check_system(self.info, numbers), periodic, skin)


class BoundGrader:
    """A grader tied to one set of atoms: positions (and cell) in, grades out."""

    def __init__(self, grader: Grader, numbers: NDArray, pbc: tuple[bool, ...], skin: float):
        self.grader, self.numbers, self.pbc = grader, numbers, pbc
        self._finder = NeighborFinder(grader.cutoff, skin)
        self._finder.overlap = 0.0  # atoms that are too close are what it is there for

    def __call__(self, positions: ArrayLike, cell: ArrayLike | None = None) -> NDArray[np.float64]:
        """Grades [N] at positions [N, 3] Å and cell [3, 3] Å; all infinite if a coordinate is not
        finite."""
        if not np.isfinite(np.asarray(positions)).all():
            return np.full(len(self.numbers), np.inf)
        grades = self.grader.grades(self._graph(positions, cell))
        return grades.cpu().numpy().astype(np.float64)

    def length_grades(
        self, positions: ArrayLike, cell: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """`Grader.length_grades` [N] of these positions; infinite as above."""
        if not np.isfinite(np.asarray(positions)).all():
            return np.full(len(self.numbers), np.inf)
        grades = self.grader.length_grades(self._graph(positions, cell))
        return grades.cpu().numpy().astype(np.float64)

    def torn(self, positions: ArrayLike, cell: ArrayLike | None, atom: int) -> Pair | None:
        """`Grader.torn` of these positions."""
        if not np.isfinite(np.asarray(positions)).all():
            return None
        return self.grader.torn(self._graph(positions, cell), atom)

    def _graph(self, positions: ArrayLike, cell: ArrayLike | None) -> Graph:
        g = self.grader
        return build_graph(
            self.numbers, positions, g.cutoff, cell, self.pbc, g.dtype, g.device, self._finder
        )


class FeatureGrader(Grader):
    """Grades from the statistics of the training set in a model's file.

    Args:
        model: a zoo name, a ``.safetensors`` file, or a model loaded from one.
        device: ``cpu``, ``cuda``, ..., or ``auto``: a GPU if there is one.

    Raises:
        ModelFileError: an exported file, or one without statistics; the message says how to get
            them.
    """

    def __init__(self, model: str | Path | DeployedModel, device: torch.device | str = "auto"):
        path = _file(model)
        if path.suffix in (".pt", ".pt2"):
            raise ModelFileError(
                f"{path} is exported: it gives no features for the guard to look at. Name the "
                ".safetensors file that it was made from (--guard-model, or guard_model=)"
            )
        loaded = load(path, "eager", "float32", device)
        self._potential = loaded.module
        self._extrapolation = load_extrapolation(path).to(loaded.device)
        self.sees_lengths = self._extrapolation.pairs is not None
        super().__init__(loaded.info, loaded.cutoff, loaded.dtype, loaded.device)

    def grades(self, graph: Graph) -> Tensor:
        moved = to(graph, self.device, self.dtype)
        return grade(self._potential, self._extrapolation, moved)

    def length_grades(self, graph: Graph) -> Tensor:
        moved = to(graph, self.device, self.dtype)
        found = self._extrapolation.length_grades(moved, edge_vectors(moved))
        return super().length_grades(graph) if found is None else found

    def torn(self, graph: Graph, atom: int) -> Pair | None:
        return self._extrapolation.torn(to(graph, self.device, self.dtype), atom)


class CommitteeGrader(Grader):
    """Grades from the disagreement of several models of the same data: the standard deviation of
    the force on an atom over the members, sqrt(mean |F - mean F|²), over ``unit``.

    It costs one evaluation with forces of every member.

    Args:
        models: zoo names, files, or loaded models; at least two.
        unit: eV/Å at grade 1; None takes `committee_unit`.

    Raises:
        InputError: members that do not fit together, or that do not say how wrong they are.
    """

    def __init__(self, models: Sequence[str | Path | DeployedModel], unit: float | None = None):
        if len(models) < 2 or not (unit is None or 0 < unit < math.inf):
            raise InputError(
                f"a committee needs two models or more and a positive unit (eV/Å), got "
                f"{len(models)} and {unit}"
            )
        self._members = [m if isinstance(m, DeployedModel) else load(m) for m in models]
        first = self._members[0]
        for member in self._members[1:]:
            if member.cutoff != first.cutoff or member.info.elements != first.info.elements:
                raise InputError(
                    f"{member.info.name} has another cutoff or covers other elements than "
                    f"{first.info.name}; the members of a committee must agree in both"
                )
        self.unit = committee_unit([m.info for m in self._members]) if unit is None else unit
        self.committee = {"members": [m.info.name for m in self._members], "unit": self.unit}
        super().__init__(first.info, first.cutoff, first.dtype, first.device)

    def grades(self, graph: Graph) -> Tensor:
        forces = torch.stack([m.predict(graph).forces.detach().cpu() for m in self._members])
        sigma = (forces - forces.mean(0)).square().sum(2).mean(0).sqrt() / self.unit
        return torch.where(torch.isfinite(sigma), sigma, torch.inf)


class JoinedGrader(Grader):
    """The larger of two grades of an atom: that of features, and that of a committee. Lengths are
    those that the features' model was trained on."""

    def __init__(self, features: FeatureGrader, committee: CommitteeGrader):
        if features.cutoff != committee.cutoff:
            raise InputError(
                f"{features.info.name} has another cutoff than the committee; give the models of "
                "one training"
            )
        self._features, self._committee = features, committee
        self.sees_lengths, self.committee = features.sees_lengths, committee.committee
        super().__init__(features.info, features.cutoff, features.dtype, features.device)

    def grades(self, graph: Graph) -> Tensor:
        found = [g.grades(graph).cpu().float() for g in (self._features, self._committee)]
        return torch.maximum(*found)

    def length_grades(self, graph: Graph) -> Tensor:
        return self._features.length_grades(graph)

    def torn(self, graph: Graph, atom: int) -> Pair | None:
        return self._features.torn(graph, atom)


def committee_unit(members: Sequence[ModelInfo]) -> float:
    """eV/Å at grade 1 of a committee: three times the root mean square over atoms of |F - F label|
    that its members had on the frames held back for validation, as their files say.

    Raises:
        InputError: a file does not say it.
    """
    squares = []
    for info in members:
        told = info.provenance.get("validation") or {}
        rmse = told.get("force_rmse")  # of a component
        if rmse is None or not 0 < rmse < math.inf:
            raise InputError(
                f"{info.name} does not say how wrong its forces are on frames held back, which "
                "draws the line of a committee. Give the disagreement at grade 1 in eV/Å "
                "(--guard-unit, or guard_unit=)"
            )
        squares.append(3.0 * rmse**2)
    return LARGE * math.sqrt(float(np.mean(squares)))


def named_models(models: str | Path) -> list[str]:
    """Names or files, with commas between; a file whose name has a comma is one."""
    text = str(models)
    return [text] if Path(text).is_file() else [m.strip() for m in text.split(",") if m.strip()]


def make_grader(models: str | Path | DeployedModel, unit: float | None = None) -> Grader:
    """What grades: of one model its features; of several (names or files, with commas between)
    the larger of the features' grade, by the first, and the committee's. Without statistics in the
    first, the committee alone.

    Args:
        unit: see `CommitteeGrader`.

    Raises:
        InputError: a unit for one model; members that do not fit together.
        ModelFileError: one model, without statistics.
    """
    names = [models] if isinstance(models, DeployedModel) else named_models(models)
    if len(names) < 2:
        if unit is not None:
            raise InputError(
                "a unit is of a committee: give two models or more, with commas between "
                "(--guard-model a.safetensors,b.safetensors)"
            )
        return FeatureGrader(names[0] if names else models)
    committee = CommitteeGrader(names, unit)
    return (
        JoinedGrader(FeatureGrader(names[0]), committee)
        if has_statistics(names[0])
        else (committee)
    )


def has_statistics(model: str | Path | DeployedModel) -> bool:
    """Does this model's file say what it was trained on?"""
    path = _file(model)
    if path.suffix in (".pt", ".pt2"):
        return False
    return load_potential(path)[1].extrapolation is not None


def _file(model: str | Path | DeployedModel) -> Path:
    if not isinstance(model, DeployedModel):
        return resolve(model)
    if model.source is None:
        raise InputError(
            f"{model!r} was not loaded from a file, so its training set is not known; give the "
            "guard a .safetensors file (guard_model=)"
        )
    return model.source
