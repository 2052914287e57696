"""Weights on disk: one safetensors file whose header carries a JSON description.

No pickle. The description (`ModelInfo`) is all that is needed to rebuild the model, and says
what the model covers and where it comes from. A hash over tensors and description finds files
that were truncated or altered.
"""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from mlpot.errors import InputError, ModelFileError
from mlpot.models.extrapolation import Extrapolation, ExtrapolationInfo
from mlpot.models.extrapolation_file import from_tensors, to_tensors
from mlpot.models.heads import EnergyHead, NoiseHead
from mlpot.models.potential import Denoiser, Potential
from mlpot.models.priors import ZBL, Floor
from mlpot.models.visnet import ViSNet, ViSNetConfig

#: 2: prior, statistics of the guard; 3: lengths of pairs among those; 4: floors; 5: statistics in
#: a quarter of the room
FORMAT = 5

#: state that the description holds exactly, so that float32 does not round it
_TOLD = ("reference_energies", "scale")

#: of the names of tensors that are statistics of the guard, beside the weights
_GUARD = "extrapolation."

#: every backbone that a file may name
BACKBONES: dict[str, tuple[type[BaseModel], type[nn.Module]]] = {"visnet": (ViSNetConfig, ViSNet)}


class ModelInfo(BaseModel):
    """What a model file says of itself. Energies in eV, lengths in Å."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    kind: Literal["potential", "denoiser"] = "potential"
    name: str = "unnamed"
    backbone: Literal["visnet"] = "visnet"
    config: dict[str, Any] = Field(default_factory=dict)
    head_softening: float = 0.1
    prior: Literal["none", "zbl"] = "none"
    floors: dict[str, float] = Field(
        default_factory=dict, description="Å by pair, 'H-C': features see no shorter; {}: any"
    )
    elements: list[int] = Field(default_factory=list, description="atomic numbers covered")
    reference_energies: dict[int, float] = Field(default_factory=dict, description="eV")
    scale: float = 1.0
    charge: Literal[0] = 0
    multiplicity: Literal[1] = 1
    level: str = Field("unknown", description="label source: level of theory or teacher")
    extrapolation: ExtrapolationInfo | None = Field(None, description="what the guard knows")
    provenance: dict[str, Any] = Field(default_factory=dict)
    sha256: str = ""

    def architecture(self) -> dict[str, Any]:
        """All that decides which operations the model is made of; nothing it has learned."""
        told = self.model_dump(include={"kind", "backbone", "config", "head_softening", "prior"})
        return {**told, "floor": bool(self.floors)}

    @property
    def weights_sha256(self) -> str:
        """Hash of the first file that held these weights: what is measured of energies and forces
        stays true where only the statistics of the guard are replaced."""
        known = self.extrapolation
        return known.added_to if known is not None and known.added_to else self.sha256

    @model_validator(mode="after")
    def _floors_have_a_wall(self) -> "ModelInfo":
        if self.floors and self.prior == "none":
            raise ValueError("floors need the prior 'zbl': below them nothing else would repel")
        return self


def build(info: ModelInfo) -> Potential | Denoiser:
    """The model that a description asks for, with fresh weights."""
    config_type, backbone_type = BACKBONES[info.backbone]
    config = config_type(**info.config)
    backbone = backbone_type(config)
    channels: int = config.channels  # type: ignore[attr-defined]
    if info.kind == "denoiser":
        return Denoiser(backbone, NoiseHead(channels, info.head_softening))
    head = EnergyHead(channels, info.head_softening)
    size: int = config.max_number  # type: ignore[attr-defined]
    prior = ZBL(size, info.floors) if info.prior == "zbl" else None
    floor = Floor(info.floors, size) if info.floors else None
    return Potential(backbone, head, info.reference_energies, info.scale, prior, floor)


def save(
    model: Potential | Denoiser,
    info: ModelInfo,
    path: str | Path,
    extrapolation: Extrapolation | None = None,
    added_to: str = "",
) -> ModelInfo:
    """Write weights in float32 and their description; returns it with the hash filled in.

    Args:
        extrapolation: statistics of the training set, for the guard; without them the file holds
            none, whatever ``info`` says.
        added_to: `ModelInfo.weights_sha256` of a file with these very weights.

    Raises:
        InputError: the description is not that of this model; a file would reload as another.
    """
    _check_told(model, info)
    tensors = {k: v.detach().cpu().float().contiguous() for k, v in _weights(model).items()}
    if extrapolation is not None:
        tensors |= {_GUARD + k: v.contiguous() for k, v in to_tensors(extrapolation).items()}
    known = None
    if extrapolation is not None:
        known = extrapolation.info.model_copy(update={"added_to": added_to})
    info = info.model_copy(update={"format": FORMAT, "sha256": "", "extrapolation": known})
    info = info.model_copy(update={"sha256": _hash(tensors, json.loads(info.model_dump_json()))})
    data = to_bytes(tensors, metadata={"mlpot": info.model_dump_json()})
    write_atomically(Path(path), data)
    return info


def load(path: str | Path) -> tuple[Potential | Denoiser, ModelInfo]:
    """Read a model in float32, in evaluation mode.

    Raises:
        ModelFileError: no such file, truncated, altered, no mlpot file, or a newer format.
    """
    tensors, info = _read_sound(Path(path))
    weights = {k: v for k, v in tensors.items() if not k.startswith(_GUARD)}
    try:
        model = build(info)
        told = {k: v for k, v in model.state_dict().items() if k in _TOLD}
        model.load_state_dict({**weights, **told})
    except (ValueError, RuntimeError, TypeError) as error:
        raise _unfit(path, error) from error
    return model.eval(), info


def load_extrapolation(path: str | Path) -> Extrapolation:
    """The statistics of the training set in a model file, in float32.

    Raises:
        ModelFileError: it has none; or as `load`.
    """
    tensors, info = _read_sound(Path(path))
    if info.extrapolation is None:
        raise ModelFileError(
            f"{path} holds no statistics of its training set, so the guard cannot tell what lies "
            f"outside it. Add them from frames like those: `mlpot guard {path} DATA`"
        )
    statistics = {k.removeprefix(_GUARD): v for k, v in tensors.items() if k.startswith(_GUARD)}
    try:
        return from_tensors(info.extrapolation, statistics)
    except (ValueError, RuntimeError, TypeError, LookupError) as error:
        raise _unfit(path, error) from error


def load_potential(path: str | Path) -> tuple[Potential, ModelInfo]:
    """`load`, for files that must hold energies and forces."""
    model, info = load(path)
    if not isinstance(model, Potential):
        raise ModelFileError(
            f"{path} holds a denoised backbone without an energy head; give it one with "
            "`mlpot finetune`"
        )
    return model, info


def parse_info(header: str, path: str | Path) -> ModelInfo:
    """Validate a description, upgrading older formats."""
    try:
        raw = json.loads(header)
        number = int(raw.get("format", -1))
        if number > FORMAT:
            raise ModelFileError(
                f"{path} is of format {number}; this mlpot reads up to {FORMAT}. Upgrade mlpot"
            )
        return ModelInfo.model_validate(raw)
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelFileError(
            f"{path}: the description in its header is invalid: {error}"
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write all or nothing: a killed process leaves the old file, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # another process may write it too
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read_sound(path: Path) -> tuple[dict[str, Tensor], ModelInfo]:
    """Tensors and description, if the hash is that of both."""
    tensors, header = _read(path)
    info = parse_info(header, path)
    if info.sha256 != _hash(tensors, json.loads(header)):
        raise ModelFileError(
            f"{path} is damaged: its hash is not the one in its header. Fetch or train it again"
        )
    return tensors, info


def _unfit(path: str | Path, error: Exception) -> ModelFileError:
    return ModelFileError(
        f"{path} does not fit its own description ({error}); it was written by another version of "
        "mlpot, or by another program"
    )


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    if not path.is_file():
        raise ModelFileError(f"no model file at {path}; check the path, or see `mlpot models`")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {}).get("mlpot")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        hint = "It is truncated or no mlpot weights file; fetch or train it again"
        if zipfile.is_zipfile(path):
            hint = "It is another torch file; the name of an exported model must end in .pt"
        raise ModelFileError(f"{path} cannot be read ({error}). {hint}") from error
    if header is None:
        raise ModelFileError(f"{path} is a safetensors file, but not one that mlpot wrote")
    return tensors, header


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """State less what the description holds exactly."""
    return {k: v for k, v in model.state_dict().items() if k not in _TOLD}


def _check_told(model: Potential | Denoiser, info: ModelInfo) -> None:
    twin = build(info)
    mine, theirs = model.state_dict(), twin.state_dict()
    shapes = {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    told = [k for k in _TOLD if k in mine]
    same = shapes and all(torch.allclose(mine[k].cpu().double(), theirs[k].double()) for k in told)
    if not same or type(model) is not type(twin) or not _same_tables(model, twin):
        raise InputError(
            "the description does not fit the model: config, prior, floors, scale or reference "
            "energies differ. "
            "Save with the ModelInfo that the model was built from"
        )


def _same_tables(model: nn.Module, twin: nn.Module) -> bool:
    """Is what follows from the description alone, such as the floors, the same?"""
    mine, theirs = (dict(m.named_buffers()) for m in (model, twin))
    fixed = [name for name in mine.keys() | theirs.keys() if name not in model.state_dict()]
    return mine.keys() == theirs.keys() and all(
        torch.allclose(mine[k].cpu().double(), theirs[k].double()) for k in fixed
    )


def _hash(tensors: dict[str, Tensor], description: dict[str, Any]) -> str:
    """Over the description as it stands in the file, so that fields which later versions of
    mlpot add do not make older files look damaged."""
    told = {k: v for k, v in description.items() if k != "sha256"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for key in sorted(tensors):
        digest.update(f"{key}{list(tensors[key].shape)}".encode())
        digest.update(tensors[key].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
