"""Weights on disk: one safetensors file whose header carries a JSON description.

No pickle. The description (`ModelInfo`) is all that is needed to rebuild the model, and says
what the model covers and where it comes from. A hash over the tensors finds files that were
truncated or altered.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from mlpot.errors import ModelFileError
from mlpot.models.heads import EnergyHead, NoiseHead
from mlpot.models.potential import Denoiser, Potential
from mlpot.models.visnet import ViSNet, ViSNetConfig

FORMAT = 1

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
    elements: list[int] = Field(default_factory=list, description="atomic numbers covered")
    reference_energies: dict[int, float] = Field(default_factory=dict, description="eV")
    scale: float = 1.0
    charge: Literal[0] = 0
    multiplicity: Literal[1] = 1
    level: str = Field("unknown", description="label source: level of theory or teacher")
    provenance: dict[str, Any] = Field(default_factory=dict)
    sha256: str = ""


def build(info: ModelInfo) -> Potential | Denoiser:
    """The model that a description asks for, with fresh weights."""
    config_type, backbone_type = BACKBONES[info.backbone]
    config = config_type(**info.config)
    backbone = backbone_type(config)
    channels: int = config.channels  # type: ignore[attr-defined]
    if info.kind == "denoiser":
        return Denoiser(backbone, NoiseHead(channels, info.head_softening))
    head = EnergyHead(channels, info.head_softening)
    return Potential(backbone, head, info.reference_energies, info.scale)


def save(model: Potential | Denoiser, info: ModelInfo, path: str | Path) -> ModelInfo:
    """Write weights in float32 and their description; returns it with the hash filled in."""
    tensors = {k: v.detach().cpu().float().contiguous() for k, v in _weights(model).items()}
    info = info.model_copy(update={"format": FORMAT, "sha256": _hash(tensors)})
    data = to_bytes(tensors, metadata={"mlpot": info.model_dump_json()})
    write_atomically(Path(path), data)
    return info


def load(path: str | Path) -> tuple[Potential | Denoiser, ModelInfo]:
    """Read a model in float32, in evaluation mode.

    Raises:
        ModelFileError: no such file, truncated, altered, no mlpot file, or a newer format.
    """
    tensors, header = _read(Path(path))
    info = parse_info(header, path)
    if info.sha256 != _hash(tensors):
        raise ModelFileError(
            f"{path} is damaged: the hash of its weights is not the one in its header. "
            "Fetch or train it again"
        )
    model = build(info)
    expected = _weights(model)
    if set(expected) != set(tensors):
        odd = sorted(set(expected) ^ set(tensors))[:3]
        raise ModelFileError(f"{path} does not fit its own description; it differs at {odd}")
    model.load_state_dict(tensors, strict=False)
    return model.eval(), info


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
    except (ValueError, AttributeError, ValidationError) as error:
        raise ModelFileError(
            f"{path}: the description in its header is invalid: {error}"
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write all or nothing: a killed process leaves the old file, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    if not path.is_file():
        raise ModelFileError(f"no model file at {path}; check the path, or see `mlpot models`")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {}).get("mlpot")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} cannot be read ({error}). It is truncated or no mlpot weights file; "
            "fetch or train it again"
        ) from error
    if header is None:
        raise ModelFileError(f"{path} is a safetensors file, but not one that mlpot wrote")
    return tensors, header


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """State less what the description holds exactly (reference energies, scale)."""
    told = ("reference_energies", "scale")
    return {k: v for k, v in model.state_dict().items() if k not in told}


def _hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
