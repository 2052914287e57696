"""Import of the published geom2vec backbones (arXiv 2410.21683, MIT).

Their checkpoints are plain state dicts, read with ``weights_only=True``. Projections that
mlpot fuses are stacked row-wise here; rows that act on the zero vectors of the first layer
are dropped, because they have no effect.
"""

from pathlib import Path

import torch
from torch import Tensor

from mlpot.errors import ModelFileError
from mlpot.models.heads import NoiseHead
from mlpot.models.visnet import ViSNet, ViSNetConfig

State = dict[str, Tensor]


def load_geom2vec_visnet(path: str | Path, cutoff: float = 7.5) -> tuple[ViSNet, NoiseHead]:
    """The published ViSNet and its noise head, in float32.

    Args:
        path: a ``visnet_*.pth`` file of geom2vec.
        cutoff: Å; not stored in the file, 7.5 for the files named ``_r75``.

    Raises:
        ModelFileError: the file cannot be read without pickle, or holds another model.
    """
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelFileError(
            f"{path} cannot be read as plain weights ({type(error).__name__}: {error}). It may "
            "be truncated or hold pickled code; download the published file again"
        ) from error
    prefix = "representation_model."
    if f"{prefix}vis_mp_layers.0.q_proj.weight" not in state:
        raise ModelFileError(f"{path} holds no geom2vec ViSNet (no {prefix}vis_mp_layers.*)")
    body = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    config = published_config(body, cutoff)
    backbone = ViSNet(config)
    backbone.load_state_dict(convert_backbone(body, config))
    head = NoiseHead(config.channels, softening=0.0)
    head.load_state_dict(convert_noise_head(state))
    return backbone, head


def published_config(body: State, cutoff: float, vector_norm: str = "max_min") -> ViSNetConfig:
    """The configuration that reproduces a published state dict (8 heads are not stored)."""
    layers = 1 + max(int(k.split(".")[1]) for k in body if k.startswith("vis_mp_layers."))
    return ViSNetConfig(
        layers=layers,
        channels=body["embedding.weight"].shape[1],
        radial=body["distance_expansion.means"].shape[0],
        max_number=body["embedding.weight"].shape[0],
        cutoff=cutoff,
        smooth=False,
        self_loops=True,
        vector_norm=vector_norm,
    )


def convert_backbone(body: State, config: ViSNetConfig) -> State:
    """Published names (those of PyG's ViSNetBlock as well) -> ours."""
    ours = {
        "basis.means": body["distance_expansion.means"],
        "basis.betas": body["distance_expansion.betas"],
        "embedding.weight": body["embedding.weight"],
        "neighbor_embedding.weight": body["neighbor_embedding.embedding.weight"],
        "scalar_norm.weight": body["out_norm.weight"],
        "scalar_norm.bias": body["out_norm.bias"],
        "vector_norm.weight": body["vec_out_norm.weight"],
    }
    for kind in ("weight", "bias"):
        ours[f"radial.{kind}"] = torch.cat(
            [
                body[f"neighbor_embedding.distance_proj.{kind}"],
                body[f"edge_embedding.edge_proj.{kind}"],
            ]
        )
        ours[f"combine.{kind}"] = body[f"neighbor_embedding.combine.{kind}"]
    for i in range(config.layers):
        start = f"vis_mp_layers.{i}."
        layer = {k[len(start) :]: v for k, v in body.items() if k.startswith(start)}
        converted = _convert_layer(layer, config, first=i == 0, last=i == config.layers - 1)
        ours.update({f"layers.{i}.{k}": v for k, v in converted.items()})
    return ours


def _convert_layer(layer: State, config: ViSNetConfig, first: bool, last: bool) -> State:
    h = config.channels
    edge = ["dk_proj", "dv_proj"] + ([] if first or last else ["f_proj"])
    ours = {}
    for kind in ("weight", "bias"):
        ours[f"scalar_norm.{kind}"] = layer[f"layernorm.{kind}"]
        ours[f"qkv.{kind}"] = torch.cat([layer[f"{n}_proj.{kind}"] for n in "qkv"])
        ours[f"edge.{kind}"] = torch.cat([layer[f"{n}.{kind}"] for n in edge])
        s, o = layer[f"s_proj.{kind}"], layer[f"o_proj.{kind}"]
        ours[f"message.{kind}"] = s[h:] if first else s
        ours[f"out.{kind}"] = o[2 * h :] if first else o
    if not first:
        ours["vector_norm.weight"] = layer["vec_layernorm.weight"]
        vector = [layer["vec_proj.weight"]]
        if not last:
            vector += [layer["w_trg_proj.weight"], layer["w_src_proj.weight"]]
        ours["vector.weight"] = torch.cat(vector)
    return ours


def _convert_block(published: State, start: str, ours: str) -> State:
    names = {"length": "vec1_proj", "gated": "vec2_proj", "hidden": "update_net.0"}
    names["result"] = "update_net.2"
    return {
        f"{ours}{mine}.{kind}": published[f"{start}{theirs}.{kind}"]
        for mine, theirs in names.items()
        for kind in ("weight", "bias")
        if f"{start}{theirs}.{kind}" in published
    }


def convert_noise_head(state: State) -> State:
    """``vec_out.output_network`` of geom2vec -> NoiseHead."""
    return {
        **_convert_block(state, "vec_out.output_network.0.", "first."),
        **_convert_block(state, "vec_out.output_network.1.", "second."),
    }


def convert_energy_head(state: State) -> State:
    """``output_model`` of PyG's ViSNet -> EnergyHead(softening=0); its last gate feeds nothing."""
    start = "output_model.output_network."
    ours = _convert_block(state, f"{start}0.", "block.")
    last = _convert_block(state, f"{start}1.", "")
    del last["gated.weight"]
    last["result.weight"], last["result.bias"] = last["result.weight"][:1], last["result.bias"][:1]
    return {**ours, **last}
