"""What a model card says: the template filled in, and the commands that remake it."""

import hashlib
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import ablation
import dimers
import dynamics
import front
import rmd17
import side_by_side
import typer
from ase.data import chemical_symbols
from card_tables import error_of_labels, tables
from experiment import (  # this folder is where the script runs
    ROOT,
    SHIPPED,
    TRAINED_ON,
    last_commit,
    of_model,
    read_results,
    stored,
)
from history import LABELLED, SHIPPED_CYCLES, gains, gains_today, learning_curve

from mlpot.data.lengths import pair_name
from mlpot.models.checkpoint import ModelInfo
from mlpot.zoo import available_models, resolve

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
GUARD = ROOT / "benchmarks" / "guard" / "results" / "calibration-standard.json"
RARE = 2000  # atoms in training
RARE_BONDS = 10  # molecules in training


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
        if options and result["settings"]["sha256"] != info.weights_sha256:
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
    known = info.weights_sha256
    return ", ".join(
        h.lower() for h, n in wanted if stored(n).get("settings", {}).get("sha256") != known
    )


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
        noted=f" --remark '{training['remark']}'" if training.get("remark") else "",
        cycles=measure_cycles(name),
        guard=guard(info.sha256),
        seeds=", ".join(f"{k} {v}" for k, v in seeds.items()),
        time=time_taken(training),
        at_the_end=at_the_end(result["validation"]),
        sha256=info.sha256,
        weights=same_weights(info),
        file_sha256=hashlib.sha256(Path(resolve(name)).read_bytes()).hexdigest(),
        since=last_commit(ROOT / "mlpot" / "zoo" / f"{name}.safetensors"),
        denoised=install_denoised(name),
        recipes=", ".join(f"`recipes/{name}-{r}.toml`" for r in recipes(stages)),
        backbone=backbone_of(name),
        option="" if name == SHIPPED else f" --name {name}",
        tables=tables(result),
        sections=text,
        unbonded=unbonded(info, result["relations"]["bonds"]),
        rare=rare(result),
        data=" ".join(f"../shared/data/{f}" for f in TRAINED_ON),
        **commands_of(stages, name),
        commands="".join(f"{c}\n" for c in commands).format(**commands_of(stages, name)),
    )


def same_weights(info: ModelInfo) -> str:
    """Which hash results have, if statistics of the guard came later."""
    if info.weights_sha256 == info.sha256:
        return ""
    return f" ({info.weights_sha256} before its present statistics of the guard)"


def measure_cycles(name: str) -> str:
    """The command behind `gains_today`, if it was given."""
    commits = list(stored(f"{name}-cycles").get("commits", {}))
    option = "" if name == SHIPPED else f" --name {name}"
    script = "python benchmarks/accuracy/model_card.py"
    return f"{script} cycles {','.join(commits)}{option}\n" if commits else ""


def guard(sha256: str) -> str:
    """How well the grade tells large errors, if that was measured of these weights."""
    result = read_results(GUARD)
    if not result or result["settings"]["model"]["sha256"] != sha256:
        return "in the model file; how well it tells was not measured"
    area, large = result["druglike"]["auc"]["grade of mlpot"], result["settings"]["large"]
    return (
        f"in the model file; on held-out molecules it tells force errors above {large:g} times the "
        f"usual with a ROC-AUC of {area['frame']:.3f} of frames, {area['atom']:.3f} of atoms "
        "(`benchmarks/guard`)"
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


def unbonded(info: ModelInfo, bonds: dict[str, int]) -> str:
    """Pairs of elements that no molecule of training has a bond of."""
    pairs = combinations_with_replacement(sorted(info.elements), 2)
    return ", ".join(name for a, b in pairs if (name := pair_name(a, b)) not in bonds)


def rare(result: dict[str, Any]) -> str:
    """Elements of few atoms, and bonds of few molecules."""
    elements = [f"{s} ({n:,} atoms)" for s, n in result["atoms_of_element"].items() if n < RARE]
    counts = result["relations"]["bonds"]
    few = [f"{name} ({n})" for name, n in counts.items() if n < RARE_BONDS]
    told = [", ".join(elements)] if elements else []
    told += [f"bonds of {', '.join(few)}, in brackets the molecules that have one"] if few else []
    return "; ".join(told) or "none of its elements and bonds"


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
