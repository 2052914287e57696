"""Measure a model of the zoo and write its card.

    python benchmarks/accuracy/model_card.py run --mode standard    # errors by subset
    python benchmarks/accuracy/model_card.py teacher aimnet2.jpt    # those of the label source
    python benchmarks/accuracy/model_card.py training runs/energies runs/energies-2 \
        --denoise runs/denoise
    python benchmarks/accuracy/model_card.py render                 # card and README table

Of another model than pretrained-visnet: `--name`, with the same recipes under that name.

Held-out molecules are those of mlpot/zoo/recipes/held_out.json; no frame of theirs was seen in
either training step. Zero-shot sets are real quantum chemistry that was never trained on. The
other experiments of this folder add their tables, where they have measured the same weights.
"""

import hashlib
import json
import sys
import tempfile
import time
from collections import Counter
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import ablation
import dimers
import dynamics
import front
import numpy as np
import rmd17
import side_by_side
import torch
import typer
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from card_tables import SMILES, TEACHER, ZERO_SHOT, error_of_labels, in_short, tables
from experiment import (  # this folder is where the script runs
    DATA,
    HELD_OUT,
    ROOT,
    SHIPPED,
    TRAINED_ON,
    commit,
    content_at,
    fill,
    last_commit,
    machine,
    millis,
    of_model,
    save_plot,
    store,
    stored,
)
from history import (
    LABELLED,
    SHIPPED_CYCLES,
    gains,
    gains_today,
    learning_curve,
    plot_learning_curve,
    read_stage,
)
from relations import frames_of, shared_partners

from mlpot.data.calculators import AIMNet2
from mlpot.data.formats import read, read_all
from mlpot.data.lengths import pair_name
from mlpot.data.record import Record
from mlpot.data.splits import split_held_out
from mlpot.models.checkpoint import ModelInfo, load, load_potential
from mlpot.models.potential import Potential
from mlpot.train.finetune import evaluate
from mlpot.zoo import available_models, resolve

__all__ = ["DATA", "ROOT", "TRAINED_ON", "app"]

#: experiments whose tables go into the card: heading, module, and options of its command; those
#: with `--model` are of one model
MODEL = " --model {last}"
SECTIONS = (
    ("Dynamics of unseen molecules", dynamics, MODEL),
    ("Two atoms, close and far", dimers, MODEL),
    ("Fine-tuning on few frames", rmd17, f"{MODEL} --denoised {{denoise}}/model.safetensors"),
    ("What denoising is worth", ablation, ""),
    ("Sizes that were tried", front, ""),
)
#: what else it takes to remake a section: options and commands after `run`
RUNS = {ablation.NAME: ablation.options, front.NAME: front.commands}
FRAMES = {"dev": 60, "fast": 600, "standard": 10**9}
ZERO_SHOT_FRAMES = 1000
RARE = 2000  # atoms in training
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


# --- measure ---------------------------------------------------------------------------------


def spread(records: list[Record], count: int) -> list[Record]:
    """At most `count` records, evenly spaced."""
    return records[:: max(1, -(-len(records) // count))]


def errors_of(model: Potential, records: list[Record]) -> dict[str, float]:
    counts = {"molecules": len({r.group for r in records}), "frames": len(records)}
    return {**counts, **millis(evaluate(model, records)._asdict())}


def subset_of(record: Record) -> str:
    if record.subset:
        return record.subset
    if len(record.numbers) < 40:
        return "DES monomers"
    return "water cluster" if record.group == "water" else "solvated amino acid"


def zero_shot_sets(elements: list[int], count: int) -> dict[str, list[Record]]:
    sets = {name: read(DATA / file) for name, file in ZERO_SHOT.items()}
    covered = set(elements)
    known = {k: [r for r in v if set(r.numbers.tolist()) <= covered] for k, v in sets.items()}
    return {name: spread(records, count) for name, records in known.items()}


def described(train: list[Record]) -> dict[str, Any]:
    """Sizes and elements of the training frames."""
    sizes = [len(r.numbers) for r in train]
    atoms = Counter(np.concatenate([r.numbers for r in train]).tolist())
    return {
        "training_frames": len(train),
        "atoms_in_a_frame": [min(sizes), int(np.median(sizes)), max(sizes)],
        "atoms_of_element": {chemical_symbols[z]: n for z, n in sorted(atoms.items())},
    }


@app.command()
def run(model: str = SHIPPED, mode: str = "fast", threads: int = 2) -> None:
    """Measure errors and write results/<name>.json."""
    torch.set_num_threads(threads)
    started = time.perf_counter()
    count = FRAMES[mode]
    potential, info = load_potential(resolve(model))
    records = read_all([DATA / f for f in TRAINED_ON])
    split = split_held_out(records, HELD_OUT)
    test = [records[i] for i in split.test]
    parts = {part: getattr(split, part) for part in ("train", "validation", "test")}
    subsets = {n: [r for r in test if subset_of(r) == n] for n in sorted(map(subset_of, test))}
    zero_shot = zero_shot_sets(info.elements, min(count, ZERO_SHOT_FRAMES))
    train, held = ([records[i] for i in part] for part in (split.train, split.validation))
    no_dimers = [r for r in test if "." not in r.group]
    result: dict[str, Any] = {
        "model": info.name,
        "sha256": info.sha256,
        "mode": mode,
        "parameters": sum(p.numel() for p in potential.parameters()),
        **described(train),
        "molecules": {k: len({records[i].group for i in v}) for k, v in parts.items()},
        "held_out": {n: errors_of(potential, spread(r, count)) for n, r in subsets.items()},
        "held_out_but_dimers": errors_of(potential, spread(no_dimers, count)),
        "held_out_all": errors_of(potential, spread(test, count)),
        "dimers": shared_partners(train, [r for r in test if "." in r.group]),
        "validation": errors_of(potential, spread(held, count)),
        "zero_shot_forces": {n: errors_of(potential, r) for n, r in zero_shot.items()},
        "zero_shot_in_training": {n: frames_of(SMILES[n], train) for n in zero_shot},
        "commit": commit(),
        "machine": machine(),
    }
    store(info.name, {**result, "seconds": round(time.perf_counter() - started, 1)})
    typer.echo(f"wrote results/{info.name}.json")


@app.command()
def cycles(commits: str, name: str = SHIPPED, threads: int = 2) -> None:
    """Validation errors of the weights that these commits (COMMIT,COMMIT,...) brought, on the
    molecules that are held out today: learning curves may be of others."""
    torch.set_num_threads(threads)
    records = read_all([DATA / f for f in TRAINED_ON])
    held = [records[i] for i in split_held_out(records, HELD_OUT).validation]
    found = {}
    for which in commits.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            path.write_bytes(content_at(which, ROOT / "mlpot" / "zoo" / f"{name}.safetensors"))
            potential, info = load_potential(path)
        found[which] = {"sha256": info.sha256, **errors_of(potential, held)}
    store(f"{name}-cycles", {"commits": found, "commit": commit(), "machine": machine()})
    typer.echo(json.dumps(found, indent=1))


@app.command()
def teacher(model: Path, count: int = ZERO_SHOT_FRAMES) -> None:
    """Errors of the label source itself (an AIMNet2 .jpt file) against quantum chemistry."""
    calculator = AIMNet2(model)
    found = {}
    for name, records in zero_shot_sets([1, 6, 7, 8], count).items():
        errors = []
        for record in records:
            atoms = Atoms(record.numbers, record.positions, calculator=calculator)
            errors.append(atoms.get_forces() - record.forces)
        off = 1e3 * np.concatenate(errors)
        found[name] = {
            "frames": len(records),
            "force_mae": float(np.abs(off).mean()),
            "force_rmse": float(np.sqrt(np.square(off).mean())),
        }
    told = {"file": model.name, "sha256": hashlib.sha256(model.read_bytes()).hexdigest()}
    store(TEACHER, {**told, "zero_shot_forces": found, "commit": commit(), "machine": machine()})
    typer.echo(json.dumps(found, indent=1, ensure_ascii=False))


@app.command()
def training(
    energies: list[Path],
    denoise: Path | None = None,
    name: str = SHIPPED,
    remark: str = "",
) -> None:
    """Keep learning curves, seeds and times of training folders in results: denoising, then
    energies and forces, each started from the one before."""
    folders = {"denoising": denoise} if denoise else {}
    folders |= {LABELLED + (f", {i}" if i else ""): folder for i, folder in enumerate(energies)}
    stages = {k: read_stage(folder) for k, folder in folders.items()}
    counts = json.loads((energies[-1] / "split.json").read_text())["counts"]
    sha256 = load_potential(energies[-1] / "model.safetensors")[1].sha256
    told = {"sha256": sha256, "frames": counts["train"], "remark": remark, "stages": stages}
    store(f"{name}-training", told)
    typer.echo(f"wrote results/{name}-training.json")


@app.command()
def install(
    model: str,
    summary: str = typer.Option(..., help="One line for `mlpot models`."),
    name: str = SHIPPED,
    card: str = typer.Option("", help="its card, if not that of its own name"),
) -> None:
    """Put a model file into the zoo under a name, with its hash in the registry."""
    zoo = ROOT / "mlpot" / "zoo"
    load(model)  # whole
    content = Path(model).read_bytes()
    (zoo / f"{name}.safetensors").write_bytes(content)
    registry = json.loads((zoo / "registry.json").read_text())
    registry[name] = {
        "file": f"{name}.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
        "card": card or f"{name}.md",
        "summary": summary,
    }
    (zoo / "registry.json").write_text(json.dumps(registry, indent=2, sort_keys=True) + "\n")
    typer.echo(f"{name}: {len(content) / 1e6:.2f} MB in mlpot/zoo")


# --- write -----------------------------------------------------------------------------------


def sections(info: ModelInfo, stages: dict[str, Any]) -> tuple[str, list[str]]:
    """Tables of the learning curve and the other experiments, and the commands behind them."""
    texts = [f"## Learning curve\n\n{learning_curve(stages)}"] if stages else []
    texts += [told] if (told := gains(stages)) else []
    texts += [told] if (told := gains_today(*history_of(info.name))) else []
    commands = []
    for heading, module, options in SECTIONS:
        found = of_model(module.NAME, info.name) if options else module.NAME
        result = stored(found)
        if not result:
            continue
        if options and result["settings"]["sha256"] != info.sha256:
            typer.echo(f"results/{found}.json is of other weights; left out", err=True)
            continue
        texts.append(f"## {heading}\n\n{module.tables(result)}")
        again = RUNS[module.NAME](result) if module.NAME in RUNS else [f"run{options}"]
        commands += [f"python benchmarks/accuracy/{module.NAME}.py {words}" for words in again]
    if missing := not_measured(info):
        texts.append(f"Not measured of this model: {missing}.")
    timed = stored(side_by_side.NAME)
    if beside := side_by_side.tables(timed) if timed else "":
        texts.append(f"## Beside the others of the zoo\n\n{beside}")
        commands.append("python benchmarks/accuracy/side_by_side.py run")
    return "\n\n".join(texts), commands


def history_of(name: str) -> tuple[dict[str, Any], dict[str, int]]:
    return stored(f"{name}-cycles"), SHIPPED_CYCLES.get(name, {})


def not_measured(info: ModelInfo) -> str:
    """Experiments of a single model that there are no results of for these weights."""
    wanted = [(h, of_model(m.NAME, info.name)) for h, m, options in SECTIONS if options]
    left = [
        h.lower() for h, n in wanted if stored(n).get("settings", {}).get("sha256") != info.sha256
    ]
    return ", ".join(left)


def time_taken(training: dict[str, Any]) -> str:
    told = [
        f"{stage['hours']:.1f} h of {name} ({stage['threads']} threads)"
        for name, stage in training.get("stages", {}).items()
        if stage["hours"] is not None
    ]
    return ", ".join(told) or "not recorded"


def at_the_end(e: dict[str, float]) -> str:
    return (
        f"forces MAE {e['force_mae']:.1f}, RMSE {e['force_rmse']:.1f} meV/Å; "
        f"energy MAE {e['energy_mae']:.2f}, RMSE {e['energy_rmse']:.2f} meV/atom "
        f"({e['frames']:,} frames)"
    )


def card(name: str, info: ModelInfo, result: dict[str, Any], training: dict[str, Any]) -> str:
    stages = training.get("stages", {})
    text, commands = sections(info, stages)
    smallest, median, largest = result["atoms_in_a_frame"]
    rare = [f"{s} ({n:,} atoms)" for s, n in result["atoms_of_element"].items() if n < RARE]
    template = (Path(__file__).parent / "card_template.md").read_text(encoding="utf-8")
    seeds = {k: s["seed"] for k, s in stages.items()}
    seeds = seeds or {LABELLED: info.provenance["recipe"]["loop"]["seed"]}
    return template.format(
        name=name,
        **{k: info.config[k] for k in ("layers", "channels", "cutoff")},
        **{k: result[k] for k in ("parameters", "commit", "machine")},
        **result["molecules"],
        prior=info.prior,
        elements=", ".join(chemical_symbols[z] for z in info.elements),
        smallest=smallest,
        median=median,
        largest=largest,
        charge="neutral" if info.charge == 0 else f"charge {info.charge}",
        spin="closed-shell" if info.multiplicity == 1 else f"multiplicity {info.multiplicity}",
        level=info.level,
        teacher=error_of_labels(),
        frames=training.get("frames", result["training_frames"]),
        remark=f". {training['remark']}" if training.get("remark") else "",
        seeds=", ".join(f"{k} {v}" for k, v in seeds.items()),
        time=time_taken(training),
        at_the_end=at_the_end(result["validation"]),
        sha256=info.sha256,
        file_sha256=hashlib.sha256(Path(resolve(name)).read_bytes()).hexdigest(),
        since=last_commit(ROOT / "mlpot" / "zoo" / f"{name}.safetensors"),
        denoised=install_denoised(name),
        recipes=", ".join(f"`recipes/{name}-{r}.toml`" for r in recipes(stages)),
        backbone=backbone_of(name),
        option="" if name == SHIPPED else f" --name {name}",
        tables=tables(result),
        sections=text,
        unbonded=unbonded(info) if info.floors else "not noted",
        rare=", ".join(rare) or "none of its elements",
        data=" ".join(f"../shared/data/{f}" for f in TRAINED_ON),
        **commands_of(stages, name),
        commands="".join(f"{c}\n" for c in commands).format(**commands_of(stages, name)),
    )


def backbone_of(name: str) -> str:
    """Is the state after denoising in the zoo as well?"""
    if f"{name}-denoised" not in available_models():
        return "not shipped"
    return f"`{name}-denoised`: the state after step 1, without an energy head, to train from"


def install_denoised(name: str) -> str:
    """The command that put the backbone into the zoo, where it is there."""
    entry = available_models().get(f"{name}-denoised")
    if entry is None:
        return ""
    return (
        f"python benchmarks/accuracy/model_card.py install runs/{name}/denoise/model.safetensors "
        f"--name {entry.name} --card {entry.card} --summary '...'\n"
    )


def unbonded(info: ModelInfo) -> str:
    """Pairs of elements that have been no nearer in training than `APART` bonds are long."""
    pairs = combinations_with_replacement(sorted(info.elements), 2)
    names = {pair_name(a, b): covalent_radii[a] + covalent_radii[b] for a, b in pairs}
    known = info.floors
    return ", ".join(n for n, bond in names.items() if known.get(n, np.inf) > dimers.APART * bond)


def recipes(stages: dict[str, Any]) -> list[str]:
    """What the recipes of all stages are called, after the model's name."""
    count = sum(k.startswith(LABELLED) for k in stages) or 1
    return ["1-denoise", *(f"{i}-energies" for i in range(2, count + 2))]


def commands_of(stages: dict[str, Any], name: str) -> dict[str, str]:
    """The commands of the stages after the second, and the folders of all with labels."""
    count = sum(k.startswith(LABELLED) for k in stages) or 1
    where = f"runs/{name}"
    folders = [f"{where}/energies", *(f"{where}/energies-{i}" for i in range(2, count + 1))]
    data = " ".join(f"../shared/data/{f}" for f in TRAINED_ON)
    again = [
        f"mlpot finetune {data} --from {start}/model.safetensors --config "
        f"mlpot/zoo/recipes/{name}-{i + 2}-energies.toml --out {out}\n"
        for i, (start, out) in enumerate(zip(folders, folders[1:], strict=False), start=1)
    ]
    return {
        "denoise": f"{where}/denoise",
        "first": folders[0],
        "again": "".join(again),
        "folders": " ".join(folders),
        "last": folders[-1],
    }


@app.command()
def render(name: str = SHIPPED) -> None:
    """Write the card from the results, and the README's table for the model of mlpot's name."""
    result, info = stored(name), load_potential(resolve(name))[1]
    if not result or result["mode"] != "standard":
        sys.exit(f"a card needs results/{name}.json of --mode standard; measure it with `run`")
    if result.get("sha256") != info.sha256:
        sys.exit(f"results/{name}.json is of other weights than the zoo's; measure them with `run`")
    training = stored(f"{name}-training")
    if training.get("sha256") != info.sha256:
        typer.echo("no training record of these weights; see `training`", err=True)
        training = {}
    if stages := training.get("stages"):
        save_plot(plot_learning_curve(stages), f"{name}-training")
    (ROOT / "mlpot" / "zoo" / f"{name}.md").write_text(card(name, info, result, training))
    if name == SHIPPED:
        short = in_short(stored(dynamics.NAME), info.sha256)
        beside = stored(side_by_side.NAME)
        others = [side_by_side.tables(beside)] if beside else []
        write_readme(name, "\n\n".join(filter(None, [tables(result), *short, *others])))
    typer.echo(f"wrote mlpot/zoo/{name}.md" + " and the table in README.md" * (name == SHIPPED))


def write_readme(name: str, text: str) -> None:
    readme = ROOT / "README.md"
    start, end = f"<!-- errors of {name}: generated -->", "<!-- end -->"
    if not fill(readme, start, text, end):
        sys.exit(f"README.md has no lines {start!r} and {end!r}")


if __name__ == "__main__":
    app()
