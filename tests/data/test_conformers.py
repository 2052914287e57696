"""Sampling: every molecule by (seed, SMILES) alone, bonds kept, bad SMILES recorded."""

import json
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
import typer
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from typer.testing import CliRunner

pytest.importorskip("rdkit", reason="RDKit is not installed: mlpot[chem]")

from mlpot.data import labellers  # noqa: E402
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
    assert _changed(stretched, bonds, False) == "a bond H-O is broken"
    assert _changed(stretched, bonds, True) == ""
    pushed = atoms.copy()
    pushed.set_distance(0, 8, 1.1, fix=0)
    elsewhere = bonds.copy()
    elsewhere[8] = elsewhere[:, 8] = False
    assert _changed(pushed, elsewhere, False) == "a bond C-H is made"
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
    how = labeller("gfn2-xtb")
    first = sample("CC=O", how, SHORT)
    used = labellers.calculator(how)
    sample("C1CO1", how, SHORT)  # an isomer: the same elements in the same order
    assert sample("CC=O", how, SHORT) == first
    assert labellers.calculator(how) is used


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
    assert "(at 100000 K)" in sampled.failed["CCO"]
    both = conformers(["CCO"], tmp_path, replace(hot, temperatures=(1e5, 300.0)))
    assert both.temperatures.tolist() == [300.0] * 5
    (reason,) = both.dropped
    assert reason.endswith("(at 100000 K)") and ("bond" in reason or "blown up" in reason)


class Springs(Calculator):
    """Every atom on a spring at the first geometry it sees; may break in mid-trajectory.

    Once broken, this one raises for ever; the next that is made does not.
    """

    implemented_properties: ClassVar = ["energy", "forces"]
    breaks_at: ClassVar[int] = 0  # which calculation breaks it; 0 for none

    def __init__(self) -> None:
        super().__init__()
        self.calculations, self.broken, self.places = 0, False, None

    def reset(self) -> None:
        super().reset()
        self.places = None

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = ()):
        super().calculate(atoms, properties, system_changes)
        self.calculations += 1
        if self.calculations == self.breaks_at:
            self.broken, type(self).breaks_at = True, 0
        if self.broken:
            raise RuntimeError("out of\nluck")
        self.places = atoms.positions.copy() if self.places is None else self.places
        away = atoms.positions - self.places
        self.results = {"energy": 15.0 * (away**2).sum(), "forces": -30.0 * away}


SPRINGS = "tests.data.test_conformers:Springs"


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class that SPRINGS names (not the one above: pytest calls this module otherwise).

    It breaks at calculation 14: the minimisation takes one, and frames are at 11 and 16.
    """
    labellers.forget_calculator()
    springs = import_module("tests.data.test_conformers").Springs
    monkeypatch.setattr(springs, "breaks_at", 14)
    return springs


def test_a_calculator_that_raises_is_replaced_and_the_reason_kept(breaking: Any) -> None:
    how, two = labeller(SPRINGS), replace(SHORT, temperatures=(300.0, 500.0), conformers=2)
    result = sample("O", how, two)
    assert breaking.breaks_at == 0
    sound = sample("O", how, two)
    assert sound["dropped"] == [] and len(sound["positions"]) == 8
    assert result["dropped"] == ["RuntimeError: out of luck (at 300 K)"]
    assert result["temperatures"] == [300.0, 500.0, 500.0, 300.0, 300.0, 500.0, 500.0]
    assert result["positions"] == sound["positions"][:1] + sound["positions"][2:]


def test_the_command_line_tells_why_trajectories_ended(tmp_path: Path, breaking: Any) -> None:
    command = ["conformers", "O", "--out", tmp_path / "out.h5", "--with", SPRINGS, "--workers", 0]
    command += ["--temperatures", "300,500", "--interval", 5, "--warmup", 5]
    result = run(*command)
    assert result.exit_code == 0, result.output
    wanted = "1 run of the dynamics ended early: RuntimeError: out of luck (at 300 K)\n"
    assert wanted in result.stdout
    again = run(*command)  # from the store
    assert wanted in again.stdout


def test_a_store_that_holds_numbers_for_reasons_is_still_read(tmp_path: Path) -> None:
    new = conformers(["CCO"], tmp_path)
    header, line = (tmp_path / "store").read_text().splitlines()
    entry = json.loads(line)
    assert entry["result"]["dropped"] == []
    entry["result"]["dropped"] = 2
    (tmp_path / "store").write_text(f"{header}\n{json.dumps(entry)}\n")
    seen: list[bool] = []
    old = conformers(["CCO"], tmp_path, on_result=seen.append)
    assert seen == [] and len(old.dropped) == 2 and "earlier version" in old.dropped[0]
    np.testing.assert_array_equal(positions(old, "CCO"), positions(new, "CCO"))


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
    ("content", "wanted"),
    [
        ("name,smiles\nethanol,CCO\nformaldehyde,C=O\n", ["CCO", "C=O"]),
        ('\ufeff"Name, x","SMILES "\n"a, b","CCO"\n', ["CCO"]),
        ('"CCO","ethanol"\n# no,no\n\n,,\n"C=O",\n', ["CCO", "C=O"]),
        ("smiles\nCCO\n", ["CCO"]),
        ("CCO ethanol,1\nC=O |c:1|,2\n", ["CCO", "C=O"]),
        ("id,smiles\r\n1,CCO\r\n2,\r\n3\r\n", ["CCO", "", ""]),  # told as failures
    ],
)
def test_csv_files(tmp_path: Path, content: str, wanted: list[str]) -> None:
    path = tmp_path / "a.CSV"
    path.write_bytes(content.encode())
    assert read_smiles(path) == wanted


def test_bad_csv_files(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('smiles,name\nCCO,"ethanol\nCO,methanol\n')  # would swallow what follows
    with pytest.raises(DataError, match="no CSV.*Check its quotes"):
        read_smiles(path)
    path.write_text("name,smiles\n")
    with pytest.raises(DataError, match="no SMILES"):
        read_smiles(path)


def test_a_file_is_read_whatever_its_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("molecules", "molecules.dat", "molecules.tab"):
        Path(name).write_text("smiles\tname\nCCO\tethanol\n")
        assert read_smiles(name) == ["CCO"]
    Path("out.h5").write_bytes(b"\x89HDF\r\n")
    with pytest.raises(DataError, match="no text file"):
        read_smiles("out.h5")
    assert read_smiles("F/C=C/F") == ["F/C=C/F"]
    long = "C" * 5000  # longer than any name of a file
    assert read_smiles(long) == [long]


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
        (["O", "--out", "a.h5", "--with", "mmff", "-o", "a=1"], "mmff has no options.*--with"),
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
    with h5py.File(out) as before, h5py.File(labelled) as file:
        assert file["CO"]["smiles"].asstr()[0] == "CO"
        assert file["CO"]["sampling_temperature"].attrs["units"] == "K"
        told = [
            dict(
                zip(
                    f["CC=O"]["conformations"][:, 0, 0],
                    f["CC=O"]["sampling_temperature"][:],
                    strict=True,
                )
            )
            for f in (before, file)
        ]
        assert told[1].items() <= told[0].items() and set(told[1].values()) == {0.0, 300.0}
