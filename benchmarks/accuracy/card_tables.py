"""What a card and the README say of errors, and of dynamics in short."""

from collections import Counter
from typing import Any

from experiment import stored, table  # this folder is where the script runs
from trajectories import BROKEN, sound

TEACHER = "label-source"
ZERO_SHOT = {
    "ethanol, CCSD(T)/cc-pVTZ": "ethanol_ccsd_t-train.npz",
    "N-methylacetamide, B3LYP": "qm22_n_methylacetamide.npz",
    "acetylacetone 300 K, PBE-D3": "acac/test_MD_300K.xyz.gz",
}
#: what these are; acetylacetone is the enol
SMILES = {
    "ethanol, CCSD(T)/cc-pVTZ": "CCO",
    "N-methylacetamide, B3LYP": "CNC(C)=O",
    "acetylacetone 300 K, PBE-D3": "CC(=O)C=C(C)O",
}


def error_row(name: str, e: dict[str, float]) -> list[str]:
    numbers = [f"{e[k]:.1f}" for k in ("energy_mae", "energy_rmse")]
    numbers += [f"{e[k]:.0f}" for k in ("force_mae", "force_rmse")]
    return [name, str(e["molecules"]), str(e["frames"]), *numbers]


def tables(result: dict[str, Any]) -> str:
    related = result["relations"]
    held = {
        **result["held_out"],
        **{f"{n}, not in dimers of training": e for n, e in related["errors_of_new"].items()},
        "all but dimers": result["held_out_but_dimers"],
        "all held out": result["held_out_all"],
    }
    source = stored(TEACHER).get("zero_shot_forces", {})

    def both(errors: dict[str, float] | None) -> list[str]:
        return [f"{errors[k]:.0f}" if errors else "-" for k in ("force_mae", "force_rmse")]

    zero_shot = [
        [name, str(e["frames"]), *both(e), *(both(source.get(name)) if source else [])]
        for name, e in result["zero_shot_forces"].items()
    ]
    header = ["set", "frames", "F MAE", "F RMSE"]
    header += ["AIMNet2's own F MAE", "F RMSE"] if source else []
    return "\n".join(
        [
            "Against its own kind of labels (AIMNet2), molecules held out of training; energies in",
            "meV/atom, forces in meV/Å:",
            "",
            table(
                ["held out", "molecules", "frames", "E MAE", "E RMSE", "F MAE", "F RMSE"],
                [error_row(name, e) for name, e in held.items()],
            ),
            "",
            new_pairs(related["dimers"]),
            *partners(related["partners"], result["held_out"]),
            "",
            "Against real quantum chemistry, whose labels were never trained on (forces, meV/Å).",
            "Functionals differ among themselves, PBE and the labels' wB97M by about 460 meV/Å on",
            "aspirin (stated with the data, not measured here), so the last row has that first:",
            "",
            table(header, zero_shot),
            "",
            known_molecules(result["zero_shot_in_training"]),
        ]
    )


def new_pairs(counts: dict[str, int]) -> str:
    """What is new of dimers."""
    return (
        f"Dimers are new pairs, mostly of molecules that training knows: of {counts['dimers']}, "
        f"both partners of {counts['both']} and one of {counts['one']} are in training, alone or "
        "with others."
    )


def partners(known: dict[str, int], held: dict[str, Any]) -> list[str]:
    """Of which sets training knows molecules after all, as partners in its dimers."""
    told = [f"{n} of the {held[name]['molecules']} of {name!r}" for name, n in known.items() if n]
    if not told:
        return ["No other held-out molecule is in training in any way."]
    return [
        f"Of the others, {' and '.join(told)} are partners in dimers of training; those of the "
        "other sets are in training in no way."
    ]


def known_molecules(frames: dict[str, dict[str, int]]) -> str:
    """Which molecules of the quantum-chemical sets are in training, with AIMNet2's labels."""
    told = [
        f"{name.split(',')[0]} ({n['alone']} frames alone, {n['in dimers']} in dimers)"
        for name, n in frames.items()
        if any(n.values())
    ]
    if not told:
        return "None of these molecules is in training."
    rest = len(told) < len(frames)
    return f"In training, with AIMNet2's labels, are {' and '.join(told)}" + (
        "; the other is not." if rest else "."
    )


def error_of_labels() -> str:
    """The label source against coupled cluster."""
    found = stored(TEACHER).get("zero_shot_forces", {})
    name = next(iter(ZERO_SHOT))
    if name not in found:
        return "not measured"
    e = found[name]
    return (
        f"AIMNet2 itself, on {e['frames']:,} frames of {name}: forces MAE {e['force_mae']:.0f}, "
        f"RMSE {e['force_rmse']:.0f} meV/Å (measured here with `{stored(TEACHER)['file']}`)"
    )


def in_short(result: dict[str, Any], sha256: str) -> list[str]:
    """One sentence on the dynamics of unseen molecules, if it was of these weights."""
    if not result or result["settings"]["sha256"] != sha256:
        return []
    share = result["settings"]["share"]
    kinds = Counter(molecule["kind"] for molecule in result["molecules"])
    runs = [
        f"{sum(map(sound, run['rows']))} of {len(run['rows'])} for {run['picoseconds'] * share:g} "
        f"ps at {run['temperature']:g} K"
        for run in result["runs"].values()
    ]
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return [
        f"Simulations of {len(result['molecules'])} held-out molecules and pairs ({told}) that "
        f"keep every bond within {BROKEN:g} Å of its mean: {'; '.join(runs)}. (Dimers are new "
        "pairs, not new molecules.)"
    ]
