"""Measure pretrained-visnet and write its card.

    python benchmarks/accuracy/model_card.py run --mode standard     # measures, writes JSON
    python benchmarks/accuracy/model_card.py render                  # card and README table

Held-out molecules are those of mlpot/zoo/recipes/held_out.json; no frame of theirs was seen in
either training step. Zero-shot sets are real quantum chemistry that was never trained on.
"""

import hashlib
import json
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from ase import units
from ase.io import read as read_atoms
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from mlpot import MLPotCalculator
from mlpot.data.formats import read, read_all
from mlpot.data.record import Record
from mlpot.data.splits import split_held_out
from mlpot.models.checkpoint import ModelInfo, load_potential
from mlpot.models.potential import Potential
from mlpot.train.finetune import evaluate
from mlpot.zoo import resolve

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
TRAINED_ON = [
    "druglike_aimnet2/frames.h5",
    "spice_des_monomers_aimnet2.h5",
    "spice_solvated_amino_acids_aimnet2.h5",
    "spice_water60_aimnet2.h5",
]
ZERO_SHOT = {
    "ethanol, CCSD(T)/cc-pVTZ": "ethanol_ccsd_t-train.npz",
    "N-methylacetamide, B3LYP": "qm22_n_methylacetamide.npz",
    "acetylacetone 300 K, PBE-D3": "acac/test_MD_300K.xyz.gz",
}
FRAMES = {"dev": 60, "fast": 600, "standard": 10**9}
app = typer.Typer(add_completion=False)


def results_file(name: str) -> Path:
    return Path(__file__).parent / "results" / f"{name}.json"


def spread(records: list[Record], count: int) -> list[Record]:
    """At most `count` records, evenly spaced."""
    return records[:: max(1, -(-len(records) // count))]


def errors_of(model: Potential, records: list[Record]) -> dict[str, float]:
    errors = evaluate(model, records)
    return {"frames": len(records), **{k: 1e3 * v for k, v in errors._asdict().items()}}


def subset_of(record: Record) -> str:
    if record.subset:
        return record.subset
    return "DES monomers" if len(record.numbers) < 40 else "solvated or water cluster"


def zero_shot(model: Potential, info: ModelInfo, count: int) -> dict[str, dict[str, float]]:
    """Forces only: another level of theory has other reference energies."""
    found = {}
    for name, file in ZERO_SHOT.items():
        records = [r for r in read(DATA / file) if set(r.numbers.tolist()) <= set(info.elements)]
        found[name] = errors_of(model, spread(records, count))
    return found


def nve_drift(path: Path, dtype: str, picoseconds: float, seed: int) -> float:
    """Slope of the total energy, meV/atom/ps: alanine dipeptide, 300 K, 0.5 fs."""
    atoms = read_atoms(ROOT / "examples" / "alanine-dipeptide.pdb")
    atoms.pbc = False
    atoms.cell = None
    atoms.calc = MLPotCalculator(path, dtype=dtype)
    thermalize_momenta(atoms, 600.0, rng=np.random.default_rng(seed))  # half goes into stretching
    Stationary(atoms)
    md = VelocityVerlet(atoms, 0.5 * units.fs)
    md.run(200)
    total: list[float] = []
    md.attach(lambda: total.append(atoms.get_total_energy()), interval=5)
    md.run(int(picoseconds * 2000))
    time_ps = np.arange(len(total)) * 2.5e-3
    return float(1e3 * np.polyfit(time_ps, total, 1)[0] / len(atoms))


@app.command()
def run(model: str = "pretrained-visnet", mode: str = "fast") -> None:
    """Measure and write results/<name>.json."""
    torch.set_num_threads(2)
    started = time.perf_counter()
    count, path = FRAMES[mode], resolve(model)
    potential, info = load_potential(path)
    records = read_all([DATA / f for f in TRAINED_ON])
    split = split_held_out(records, ROOT / "mlpot/zoo/recipes/held_out.json")
    test = [records[i] for i in split.test]
    names = sorted({subset_of(r) for r in test})
    picoseconds = {"dev": 0.1, "fast": 1.0, "standard": 5.0}[mode]
    result: dict[str, Any] = {
        "model": info.name,
        "mode": mode,
        "parameters": sum(p.numel() for p in potential.parameters()),
        "training_frames": len(split.train),
        "molecules": {
            part: len({records[i].group for i in getattr(split, part)})
            for part in ("train", "validation", "test")
        },
        "held_out": {
            n: errors_of(potential, spread([r for r in test if subset_of(r) == n], count))
            for n in names
        },
        "held_out_all": errors_of(potential, spread(test, count)),
        "zero_shot_forces": zero_shot(potential, info, min(count, 1000)),
        "nve_drift_meV_per_atom_ps": {
            d: [nve_drift(path, d, picoseconds, s) for s in range(3)]
            for d in ("float32", "float64")
        },
        "nve_picoseconds": picoseconds,
        "machine": f"{platform.machine()}, 2 threads, torch {torch.__version__}",
        "seconds": 0.0,
    }
    result["seconds"] = round(time.perf_counter() - started, 1)
    results_file(info.name).write_text(json.dumps(result, indent=2) + "\n")
    typer.echo(f"wrote {results_file(info.name).relative_to(ROOT)} in {result['seconds']} s")


def error_rows(errors: dict[str, dict[str, float]], energies: bool = True) -> list[str]:
    rows = []
    for name, e in errors.items():
        energy = f"{e['energy_mae']:.1f} | {e['energy_rmse']:.1f} | " if energies else ""
        rows.append(
            f"| {name} | {e['frames']} | {energy}{e['force_mae']:.0f} | {e['force_rmse']:.0f} |"
        )
    return rows


def tables(result: dict[str, Any]) -> str:
    held = {**result["held_out"], "all held out": result["held_out_all"]}
    lines = [
        "Against its own kind of labels (AIMNet2), molecules never seen in training; energies in",
        "meV/atom, forces in meV/Å:",
        "",
        "| held-out molecules | frames | E MAE | E RMSE | F MAE | F RMSE |",
        "|---|---|---|---|---|---|",
        *error_rows(held),
        "",
        "Against real quantum chemistry, never trained on (forces, meV/Å). Functionals differ",
        "among themselves, PBE and the labels' wB97M by about 460 meV/Å on aspirin, so the last",
        "row measures that first:",
        "",
        "| set | frames | F MAE | F RMSE |",
        "|---|---|---|---|",
        *error_rows(result["zero_shot_forces"], energies=False),
    ]
    return "\n".join(lines)


CARD = (Path(__file__).parent / "card_template.md").read_text(encoding="utf-8")


@app.command()
def install(model: str, name: str, summary: str) -> None:
    """Put a model file into the zoo under a name, with its hash in the registry."""
    zoo = ROOT / "mlpot" / "zoo"
    load_potential(model)  # whole, and a potential
    content = Path(model).read_bytes()
    (zoo / f"{name}.safetensors").write_bytes(content)
    registry = json.loads((zoo / "registry.json").read_text())
    registry[name] = {
        "file": f"{name}.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
        "card": f"{name}.md",
        "summary": summary,
    }
    (zoo / "registry.json").write_text(json.dumps(registry, indent=2, sort_keys=True) + "\n")
    typer.echo(f"{name}: {len(content) / 1e6:.2f} MB in mlpot/zoo")


@app.command()
def render(name: str = "pretrained-visnet") -> None:
    """Write the card and the README's table from the results file."""
    from ase.data import chemical_symbols

    result = json.loads(results_file(name).read_text())
    if result["mode"] != "standard":
        sys.exit(f"results are of mode {result['mode']!r}; a card needs --mode standard")
    info = load_potential(resolve(name))[1]
    training = json.loads(results_file(f"{name}-training").read_text())
    drift = "; ".join(
        f"{d} {', '.join(f'{v:+.3f}' for v in values)}"
        for d, values in result["nve_drift_meV_per_atom_ps"].items()
    )
    validation = info.provenance["validation"]
    card = CARD.format(
        name=name,
        **{k: info.config[k] for k in ("layers", "channels", "cutoff")},
        parameters=result["parameters"],
        elements=", ".join(chemical_symbols[z] for z in info.elements),
        level=info.level,
        frames=training["frames"],
        remark=training["remark"],
        **result["molecules"],
        time=training["time"],
        v_force=1e3 * validation["force_mae"],
        v_energy=1e3 * validation["energy_mae"],
        tables=tables(result),
        ps=result["nve_picoseconds"],
        drift=drift,
        data=" ".join(f"../shared/data/{f}" for f in TRAINED_ON),
    )
    (ROOT / "mlpot" / "zoo" / f"{name}.md").write_text(card)
    readme = ROOT / "README.md"
    start, end = f"<!-- errors of {name}: generated -->", "<!-- end -->"
    block = f"{start}\n{tables(result)}\n{end}"
    text = readme.read_text()
    if start not in text:
        sys.exit(f"README.md has no line {start!r}")
    readme.write_text(re.sub(f"{re.escape(start)}.*?{end}", lambda _: block, text, flags=re.S))
    typer.echo(f"wrote mlpot/zoo/{name}.md and the table in README.md")


if __name__ == "__main__":
    app()
