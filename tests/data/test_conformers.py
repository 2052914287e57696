"""Sampling: every molecule by (seed, SMILES) alone, bonds kept, bad SMILES recorded."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import typer
from ase import Atoms
from ase.build import molecule
from typer.testing import CliRunner

pytest.importorskip("rdkit", reason="RDKit is not installed: mlpot[chem]")

from mlpot.data.conformers import Sampled, canonical, read_smiles  # noqa: E402
from mlpot.data.conformers import conformers as in_processes  # noqa: E402
from mlpot.data.formats import read_all  # noqa: E402
from mlpot.data.labellers import labeller  # noqa: E402
from mlpot.data.record import formula  # noqa: E402
from mlpot.data.sampling import (  # noqa: E402
    Sampling,
    _bonds,
    _changed,
    _embed,
    _minimise,
    _random,
    sample,
)
from mlpot.data.splits import make_split  # noqa: E402
from mlpot.errors import DataError, InputError, UnsupportedSystemError  # noqa: E402
from mlpot.units import BOLTZMANN  # noqa: E402

SHORT = Sampling(temperatures=(300.0,), conformers=1, frames=2, interval=5.0, warmup=5.0)


def conformers(smiles: list[str], where: Path, how: Sampling = SHORT, **options: Any) -> Sampled:
    """By MMFF94 in this process."""
    return in_processes(smiles, None, how, where / "store", **{"workers": 0} | options)


def positions(sampled: Sampled, smiles: str) -> np.ndarray:
    return np.array([r.positions for r in sampled.records if r.group == smiles])


# --- nature -------------------------------------------------------------------------------------


def test_frames_are_those_of_the_molecule(tmp_path: Path) -> None:
    sampled = conformers(["OCC", "CC(=O)[O-]", "C[NH3+]"], tmp_path)
    assert {r.group: (formula(r.numbers), r.charge) for r in sampled.records} == {
        "CCO": ("C2H6O", 0),
        "CC(=O)[O-]": ("C2H3O2", -1),
        "C[NH3+]": ("CH6N", 1),
    }
    assert Counter(r.group for r in sampled.records) == {"CCO": 2, "CC(=O)[O-]": 2, "C[NH3+]": 2}
    assert sampled.temperatures.tolist() == [300.0] * 6
    assert all(r.energy is None and r.forces is None for r in sampled.records)


def test_the_spread_of_a_bond_follows_the_temperature() -> None:
    """Classical bonds: the variance is kT / k, so it doubles from 300 K to 600 K."""
    how = Sampling((300.0, 600.0), conformers=1, frames=250, interval=10.0, friction=0.1)
    result = sample("CC", None, how)
    frames = np.array(result["positions"]).reshape(2, -1, 8, 3)
    hydrogens = frames[:, :, 2:] - frames[:, :, [0, 0, 0, 1, 1, 1]]
    cold, hot = np.linalg.norm(hydrogens, axis=-1).var(axis=(1, 2))
    assert hot / cold == pytest.approx(2.0, rel=0.2)
    # MMFF94 C-H: 4.766 mdyn/Å (Halgren, J. Comput. Chem. 17, 520, 1996), 29.7 eV/Å²
    assert cold == pytest.approx(BOLTZMANN * 300 / 29.7, rel=0.25)


def test_zero_kelvin_is_the_minimum() -> None:
    result = sample("O", None, replace(SHORT, temperatures=(0.0,), frames=5))
    (frame,) = np.array(result["positions"])
    water = Atoms(result["numbers"], frame)
    # MMFF94 water: 0.969 Å, 103.98 degrees (Halgren 1996)
    assert water.get_distance(0, 1) == pytest.approx(0.969, abs=0.003)
    assert water.get_angle(1, 0, 2) == pytest.approx(103.98, abs=0.3)


def test_molecules_of_one_smiles_stand_side_by_side() -> None:
    result = sample("O.O.CO", None, replace(SHORT, temperatures=(0.0,)))
    numbers = np.array(result["numbers"])
    assert formula(numbers) == "CH8O3"
    distances = Atoms(numbers, result["positions"][0]).get_all_distances()
    bonds = _bonds(_embed("O.O.CO", _random("O.O.CO", 0, 0)))
    between = distances[~bonds & (distances > 0)]
    assert between.min() > 1.4 and distances[bonds].max() < 1.5


def test_changed_bonds_are_noticed() -> None:
    mol = _embed("CCO", _random("CCO", 0, 0))
    bonds, atoms = _bonds(mol), _minimise(mol, None)
    assert _changed(atoms, bonds, False) == ""
    stretched = atoms.copy()
    stretched.positions[8] += 1.0 * (stretched.positions[8] - stretched.positions[2])
    assert _changed(stretched, bonds, False) == "the bond O2-H8 is broken"
    assert _changed(stretched, bonds, True) == ""
    pushed = atoms.copy()
    pushed.set_distance(0, 8, 1.1, fix=0)
    assert "C0-H8 is made" in _changed(pushed, bonds & False, False) or _changed(
        pushed, bonds, False
    )
    blown = atoms.copy()
    blown.positions[0, 0] = np.nan
    assert "blown up" in _changed(blown, bonds, True)


# --- reproducible -------------------------------------------------------------------------------


def test_a_molecule_depends_on_seed_and_smiles_alone(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
    one = conformers(["CCO", "C=O"], tmp_path / "a")
    two = conformers(["C=O", "CO", "OCC"], tmp_path / "b", workers=2)
    np.testing.assert_array_equal(positions(one, "CCO"), positions(two, "CCO"))
    np.testing.assert_array_equal(positions(one, "C=O"), positions(two, "C=O"))
    more = replace(SHORT, temperatures=(500.0, 300.0), conformers=2, frames=3)
    wider = conformers(["CCO"], tmp_path / "c", more)
    at_300 = positions(wider, "CCO")[wider.temperatures == 300.0]
    np.testing.assert_array_equal(positions(one, "CCO"), at_300[:2])
    other = conformers(["CCO"], tmp_path / "d", replace(SHORT, seed=1))
    assert np.abs(positions(other, "CCO") - positions(one, "CCO")).max() > 0.01


def test_a_calculator_that_remembers_gives_the_same_frames() -> None:
    pytest.importorskip("tblite", reason="tblite is not installed: mlpot[xtb]")
    calc = labeller("gfn2-xtb").build()
    first = sample("CC=O", calc, SHORT)
    sample("C1CO1", calc, SHORT)  # an isomer: the same elements in the same order
    assert sample("CC=O", calc, SHORT) == first


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    whole = conformers(["CCO", "C=O", "CO"], tmp_path)
    store = tmp_path / "store"
    store.write_bytes(store.read_bytes()[:-10])  # killed while the last was written
    seen: list[bool] = []
    again = conformers(["CCO", "C=O", "CO"], tmp_path, on_result=seen.append)
    assert seen == [True]
    for a, b in zip(whole.records, again.records, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        assert a.group == b.group


# --- bad input ------------------------------------------------------------------------------------


def test_bad_molecules_are_recorded_and_do_not_stop_the_others(tmp_path: Path) -> None:
    bad = ["xx", "[CH3]", "", "*C", "C[SnH2]C"]
    sampled = conformers(["CO", *bad, "OC", "C(O)"], tmp_path)
    assert {r.group for r in sampled.records} == {"CO"}
    assert set(sampled.failed) == set(bad)
    assert "not a valid SMILES" in sampled.failed["xx"]
    assert "unpaired electrons" in sampled.failed["[CH3]"]
    assert "no element" in sampled.failed["*C"]
    assert "MMFF94 has no parameters" in sampled.failed["C[SnH2]C"]
    assert sampled.duplicates == 2


def test_elements_the_model_does_not_cover_are_recorded(tmp_path: Path) -> None:
    how = labeller("mlpot.calculator:MLPotCalculator", {"model": "pretrained-visnet"})
    store = tmp_path / "store"
    sampled = in_processes(["O", "C[Se]C", "[Cl-]"], how, SHORT, store, workers=0)
    assert {r.group for r in sampled.records} == {"O"}
    assert "Se" in sampled.failed["C[Se]C"] and "charge" in sampled.failed["[Cl-]"]


def test_a_reaction_ends_the_trajectory(tmp_path: Path) -> None:
    hot = replace(SHORT, temperatures=(1e5,), frames=5, interval=20.0)
    sampled = conformers(["CCO"], tmp_path, hot)
    assert not sampled.records and "no frame is left" in sampled.failed["CCO"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperatures": ()}, "temperatures"),
        ({"temperatures": (-1.0,)}, "temperatures"),
        ({"temperatures": (float("nan"),)}, "temperatures"),
        ({"frames": 0}, "frames must be positive"),
        ({"timestep": 0.0}, "timestep must be positive"),
        ({"interval": 0.1}, "cannot be 0.1 fs apart"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_settings(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SHORT, **changes)


def test_smiles_files(tmp_path: Path) -> None:
    path = tmp_path / "a.smi"
    path.write_text("smiles name\nCCO ethanol\n\n# no\nC=O\tformaldehyde\nCO,1\n")
    assert read_smiles(path) == ["CCO", "C=O", "CO"]
    assert read_smiles("CCO") == ["CCO"]
    path.write_text("\n# nothing\n")
    with pytest.raises(DataError, match="no SMILES"):
        read_smiles(path)
    with pytest.raises(DataError, match="no such file"):
        read_smiles("absent.smi")
    with pytest.raises(InputError, match="there are no SMILES"):
        conformers([], tmp_path)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("OCC", "CCO"),
        ("[H]C([H])([H])[H]", "C"),
        ("[CH3:1][OH:2]", "CO"),
        ("N[C@H](C)C(=O)O", "C[C@@H](N)C(=O)O"),
        ("F/C=C/F", "F/C=C/F"),
        ("[H][H]", "[H][H]"),
    ],
)
def test_one_molecule_has_one_name(given: str, wanted: str) -> None:
    assert canonical(given) == wanted == canonical(wanted)


def test_stereoisomers_are_different_molecules() -> None:
    assert canonical("N[C@H](C)C(=O)O") != canonical("N[C@@H](C)C(=O)O")
    with pytest.raises(UnsupportedSystemError, match="unpaired"):
        canonical("[O]")


# --- files ----------------------------------------------------------------------------------------


def run(*args: object) -> Any:
    from mlpot.cli.common import Group
    from mlpot.cli.data import conformers as verb
    from mlpot.cli.data import label

    app = typer.Typer(cls=Group)
    app.command("conformers")(verb)
    app.command("label")(label)
    return CliRunner().invoke(app, [str(a) for a in args])


FAST = ("--with", "mmff", "--workers", 0, "--temperatures", "0,300", "--interval", 5)
ISOMERS = ["F/C=C/F", "F/C=C\\F", "C[C@H](N)C(=O)O", "CC(=O)[O-]", "C#C"]


@pytest.mark.parametrize("name", ["out.h5", "out.xyz.gz"])
def test_the_command_line_writes_what_the_readers_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "more.smi").write_text("\n".join(ISOMERS[1:]) + "\nnonsense\n")
    out = tmp_path / name
    result = run("conformers", ISOMERS[0], tmp_path / "more.smi", "--out", out, *FAST)
    assert result.exit_code == 0, result.output
    assert "1 molecule failed (the first: nonsense)" in result.stdout
    records = read_all([out])
    # a minimum and five frames for each of two conformers
    assert Counter(r.group for r in records) == {canonical(s): 12 for s in ISOMERS}
    assert {r.charge for r in records if r.group == "CC(=O)[O-]"} == {-1}
    split = make_split(records, validation=0.2, test=0.2)
    parts = [{records[i].group for i in p} for p in (split.train, split.validation, split.test)]
    assert sum(map(len, parts)) == 5
    # as they were sampled
    again = in_processes(
        ISOMERS, None, Sampling((0.0, 300.0), interval=5.0), tmp_path / f"{name}.store", workers=0
    )
    atol = 1e-13 if name == "out.h5" else 1e-8
    for one, two in zip(again.records, records, strict=True):
        np.testing.assert_allclose(one.positions, two.positions, rtol=0, atol=atol)
        assert (one.group, one.charge) == (two.group, two.charge)


def test_spice_layout(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    assert run("conformers", "F/C=C/F", "O", "--out", out, *FAST).exit_code == 0
    with h5py.File(out) as file:
        assert set(file) == {"F|C=C|F", "O"}
        group = file["F|C=C|F"]
        assert group["smiles"].asstr()[0] == "F/C=C/F"
        assert group["conformations"].shape == (12, 6, 3)
        assert sorted(set(group["sampling_temperature"][:])) == [0.0, 300.0]
        assert "dft_total_energy" not in group


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["xx", "--out", "a.h5"], "every molecule has failed.*not a valid SMILES"),
        (["O", "--out", "a.npz"], "no format that mlpot writes"),
        (["O", "--out", "a.h5", "--temperatures", "300;400"], "numbers with commas"),
        (["O", "--out", "a.h5", "--with", "gfn7"], "gfn2-xtb"),
        (["O", "--out", "a.h5", "-o", "nonsense"], "KEY=VALUE"),
        (["absent.smi", "--out", "a.h5"], "no such file"),
    ],
)
def test_bad_commands_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list, message: str
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    extra = [] if "--with" in arguments or "-o" in arguments else ["--with", "mmff"]
    result = run("conformers", *arguments, *extra)
    assert result.exit_code == 1, result.output
    assert re.search(message, result.stderr) and result.stderr.count("\n") == 1
    assert not (tmp_path / "a.h5").exists()


def test_from_smiles_to_labels(tmp_path: Path) -> None:
    """What a user does: sample, label by GFN2-xTB, read. Minima of MMFF94 and GFN2 are close."""
    pytest.importorskip("tblite", reason="tblite is not installed: mlpot[xtb]")
    out, labelled = tmp_path / "out.h5", tmp_path / "labelled.h5"
    assert run("conformers", "CO", "CC=O", "--out", out, *FAST).exit_code == 0
    result = run("label", out, "--with", "gfn2-xtb", "--out", labelled, "--workers", 2)
    assert result.exit_code == 0, result.output
    records = read_all([labelled])
    # rigid molecules: the minima of both conformers may be one frame, or equal to 1e-6
    assert 22 <= len(records) <= 24 and {r.level for r in records} == {"GFN2-xTB"}
    atoms = molecule("CH3OH")
    atoms.calc = labeller("gfn2-xtb").build()
    energies = [r.energy for r in records if r.group == "CO"]
    assert min(energies) == pytest.approx(atoms.get_potential_energy(), abs=0.1)
    with h5py.File(labelled) as file:
        assert file["CO"]["smiles"].asstr()[0] == "CO"
