"""Every format against nature (known energies, restoring forces, E' = -F) and against damage."""

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest

from mlpot import units
from mlpot.data.formats import read, read_all
from mlpot.data.formats.common import formal_charge
from mlpot.data.formats.extxyz import read_extxyz, write_extxyz
from mlpot.data.formats.md17 import read_md17
from mlpot.data.formats.spice import read_spice, write_spice
from mlpot.data.record import Record, check_records, formula
from mlpot.errors import DataError

FILES = Path(__file__).parent / "files"


@pytest.fixture(scope="module")
def shared() -> Path:
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder shared/data beside the clone: tests on larger files are left out")
    return folder


def work_and_energy(records: list[Record]) -> tuple[np.ndarray, np.ndarray]:
    """-F·dR (F the mean of both ends) and dE between consecutive frames, eV."""
    positions = np.array([r.positions for r in records])
    forces = np.array([r.forces for r in records])
    mean = (forces[1:] + forces[:-1]) / 2
    work = -(mean * np.diff(positions, axis=0)).sum(axis=(1, 2))
    return work, np.diff([r.energy for r in records])


def methane(**fields) -> Record:
    positions = 0.63 * np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    numbers = np.array([6, 1, 1, 1, 1])
    return Record(**{"numbers": numbers, "positions": positions, "group": "C"} | fields)


# --- what every file says about nature --------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "molecule", "group", "energy", "level"),
    [
        # All-electron total energies: eV, within a few tenths of what the method gives.
        ("rmd17_aspirin_3.xyz", "C9H8O4", "C9H8O4", -17617.5, ""),
        ("acac_3.xyz.gz", "C5H8O2", "C5H8O2", -9391.0, ""),
        ("acac_energies_only_2.xyz", "C5H8O2", "C5H8O2", -9392.0, ""),
        ("md17_ethanol_3.npz", "C2H6O", "C2H6O", -154.915 * units.HARTREE_TO_EV, ""),
        ("sgdml_ethanol_ccsd_t_3.npz", "C2H6O", "C2H6O", -154.72 * units.HARTREE_TO_EV, "Psi4"),
        ("qm22_n_methylacetamide_3.npz", "C3H7NO", "C3H7NO", -6758.0, "B3LYP"),
        ("spice_monomers_3.h5", "H3N", "N", -56.55 * units.HARTREE_TO_EV, "AIMNet2"),
        ("concatenated_3.h5", "C12H16N4O3", "CN1CCn2", -24818.0, "AIMNet2"),
    ],
)
def test_energies_and_forces_are_those_of_the_molecule(
    name: str, molecule: str, group: str, energy: float, level: str
) -> None:
    records = read(FILES / name)
    first = records[0]
    assert formula(first.numbers) == molecule
    assert first.group.startswith(group) and first.level.startswith(level)
    assert first.energy == pytest.approx(energy, abs=3.0)
    assert (first.cell, first.pbc, first.charge) == (None, (False,) * 3, 0)
    for record in records:
        assert record.numbers.dtype == np.int64
        if "energies_only" in name:
            assert record.forces is None
            continue
        assert record.forces is not None
        assert np.abs(record.forces.sum(axis=0)).max() < 0.02  # no net force on a molecule
        assert 0.2 < np.sqrt((record.forces**2).mean()) < 3.0


def test_consecutive_md17_frames_obey_energy_conservation() -> None:
    # A wrong sign gives slope -1, wrong units another slope.
    work, difference = work_and_energy(read(FILES / "md17_ethanol_3.npz"))
    np.testing.assert_allclose(difference, work, rtol=0.02)


def test_md17_ethanol_forces_are_minus_the_gradient(shared: Path) -> None:
    work, difference = work_and_energy(read(shared / "md17_ethanol_first2000.npz"))
    assert np.polyfit(work, difference, 1)[0] == pytest.approx(1.0, abs=0.005)
    assert np.corrcoef(work, difference)[0, 1] > 0.999


def test_water_in_spice_has_the_stretching_force_constant_of_water(shared: Path) -> None:
    # Bohr, hartree and the sign of the gradient in one number: 8.45 mdyn/Å, the harmonic O-H
    # force constant of water (Hoy, Mills and Strey, Mol. Phys. 24, 1265 (1972)).
    lengths, along = [], []
    for record in read(shared / "spice_des_monomers_aimnet2.h5"):
        if record.group != "O":
            continue
        oxygen = record.positions[record.numbers == 8][0]
        hydrogen = record.numbers == 1
        bonds = record.positions[hydrogen] - oxygen
        length = np.linalg.norm(bonds, axis=1)
        assert record.forces is not None
        lengths += length.tolist()
        along += ((record.forces[hydrogen] * bonds).sum(axis=1) / length).tolist()
    curve = np.polynomial.Polynomial.fit(lengths, along, 2)
    constant = 8.45e-8 / 1e-10 * 1e-20 / 1.602176634e-19  # mdyn/Å -> eV/Å²
    assert -curve.deriv()(0.96) == pytest.approx(constant, rel=0.05)
    assert any(root == pytest.approx(0.96, abs=0.01) for root in np.real(curve.roots()))


def test_the_same_molecule_in_two_layouts() -> None:
    # sGDML stores kcal/mol; the factor to hartree is 627.509 in every textbook.
    raw = np.load(FILES / "sgdml_ethanol_ccsd_t_3.npz")
    records = read(FILES / "sgdml_ethanol_ccsd_t_3.npz")
    for record, energy, forces in zip(records, raw["E"].ravel(), raw["F"], strict=True):
        assert record.energy == pytest.approx(energy / 627.5095 * 27.211386, rel=1e-6)
        np.testing.assert_allclose(record.forces, forces * 0.0433641, rtol=1e-5)
    assert records[0].subset == "ethanol_ccsd"


def test_spice_units() -> None:
    with h5py.File(FILES / "spice_monomers_3.h5") as file:
        raw = {name: file["O"][name][:] for name in file["O"] if name != "smiles"}
    records = [r for r in read(FILES / "spice_monomers_3.h5") if r.group == "O"]
    assert len(records) == 3
    for i, record in enumerate(records):
        np.testing.assert_allclose(
            record.positions, raw["conformations"][i] * 0.52917721, rtol=1e-6
        )
        assert record.energy == pytest.approx(raw["dft_total_energy"][i] * 27.2113862, rel=1e-8)
        want = -raw["dft_total_gradient"][i] * 51.4220675
        np.testing.assert_allclose(record.forces, want, rtol=1e-5)


def test_concatenated_frames_are_cut_at_the_offsets() -> None:
    records = read(FILES / "concatenated_3.h5")
    assert {r.group for r in records} == {"CN1CCn2cnc(C(=O)N3CCOCC3)c2C1=O"}
    assert {r.subset for r in records} == {"moses"}
    assert len({r.energy for r in records}) == 3
    for record in records:  # a shifted cut would put two molecules into one frame
        distance = np.linalg.norm(record.positions[:, None] - record.positions, axis=2)
        assert np.sort(distance, axis=1)[:, 1].max() < 1.6


def test_druglike_set_reads_whole(shared: Path) -> None:
    records = read(shared / "druglike_aimnet2" / "frames.h5")
    assert len(records) == 140_160
    assert len({r.group for r in records}) == 13_900
    assert sum(len(r.numbers) for r in records) == 4_243_827
    assert records[0].positions.base is records[-1].positions.base  # views, not copies
    check_records(records, need_energy=True, need_forces=True)


def test_every_shared_file_reads(shared: Path) -> None:
    for path in sorted([*shared.glob("*.*"), *shared.glob("acac/*.*")]):
        if path.suffix == ".md":
            continue
        records = read(path)
        isolated_or_scan = "isolated" in path.name or path.name.startswith(("test_H", "test_dih"))
        check_records(records, need_energy=True, need_forces=not isolated_or_scan)


# --- conventions of each format ---------------------------------------------------------------

XYZ = """2
Lattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:{forces}:R:3 {comment}
H 0.0 0.0 0.0 0.0 0.0 -1.5
F 0.0 0.0 0.9 0.0 0.0 1.5
"""


def xyz(tmp_path: Path, comment: str, forces: str = "forces") -> Path:
    path = tmp_path / "frame.xyz"
    path.write_text(XYZ.format(comment=comment, forces=forces))
    return path


def test_extxyz_periodicity(tmp_path: Path) -> None:
    (free,) = read(xyz(tmp_path, 'energy=-1.0 pbc="F F F"'))
    assert free.cell is None and not any(free.pbc)
    (slab,) = read(xyz(tmp_path, 'energy=-1.0 pbc="T T F"'))
    assert slab.pbc == (True, True, False)
    np.testing.assert_array_equal(slab.cell, 9 * np.eye(3))


def test_extxyz_other_names_and_groups(tmp_path: Path) -> None:
    path = xyz(tmp_path, "REF_energy=-7.5 smiles=F charge=-1 config_type=md pbc=F", "REF_forces")
    (record,) = read(path)
    assert (record.energy, record.forces) == (None, None)
    (record,) = read(path, energy_key="REF_energy", forces_key="REF_forces", level="PBE")
    assert record.energy == -7.5 and record.forces is not None
    assert record.forces[1, 2] == 1.5
    # `F`, the SMILES of HF, reads as False in extended XYZ.
    assert (record.group, record.charge, record.subset) == ("F", -1, "md")
    assert record.level == "PBE"
    (record,) = read(xyz(tmp_path, "config_type=md name=frame_7 pbc=F"))
    assert record.group == "FH"


def npz(tmp_path: Path, **changes) -> Path:
    content = dict(np.load(FILES / "md17_ethanol_3.npz")) | changes
    path = tmp_path / "data.npz"
    np.savez(path, **{k: v for k, v in content.items() if v is not None})
    return path


KCAL = 0.0433641  # eV


@pytest.mark.parametrize(
    ("fields", "options", "scale"),
    [
        ({}, {}, KCAL),
        ({}, {"units": "eV"}, 1.0),
        ({"e_unit": "eV", "r_unit": "Ang"}, {}, 1.0),
        ({"units": "eV, Angstrom, eV/Angstrom"}, {"units": "eV"}, 1.0),
        ({"e_unit": "kcal/mol"}, {"units": "kcal/mol"}, KCAL),
    ],
)
def test_md17_units(tmp_path: Path, fields: dict, options: dict, scale: float) -> None:
    raw = np.load(FILES / "md17_ethanol_3.npz")
    record = read(npz(tmp_path, **fields), **options)[0]
    assert record.energy == pytest.approx(float(raw["E"][0, 0]) * scale, rel=1e-5)
    np.testing.assert_allclose(record.forces, raw["F"][0] * scale, rtol=1e-5, atol=1e-12)
    np.testing.assert_array_equal(record.positions, raw["R"][0])


def test_md17_lengths_in_bohr_scale_positions_and_forces(tmp_path: Path) -> None:
    # Energy is conserved in whatever unit lengths are stored.
    raw = np.load(FILES / "md17_ethanol_3.npz")
    path = npz(tmp_path, R=raw["R"] / 0.52917721, F=raw["F"] * 0.52917721, r_unit="bohr")
    for got, want in zip(read(path), read(FILES / "md17_ethanol_3.npz"), strict=True):
        np.testing.assert_allclose(got.positions, want.positions, rtol=1e-6)
        np.testing.assert_allclose(got.forces, want.forces, rtol=1e-6, atol=1e-12)


def test_md17_contradicting_or_unknown_units(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="says that it is in eV, not in kcal/mol"):
        read(FILES / "qm22_n_methylacetamide_3.npz", units="kcal/mol")
    with pytest.raises(DataError, match="unknown energy unit 'Rydberg'"):
        read(npz(tmp_path), units="Rydberg")
    with pytest.raises(DataError, match="forces are in eV/bohr"):
        read(npz(tmp_path, units="eV, Angstrom, eV/bohr"))


def test_rmd17_names(tmp_path: Path) -> None:
    raw = np.load(FILES / "md17_ethanol_3.npz")
    path = tmp_path / "rmd17.npz"
    np.savez(path, coords=raw["R"], nuclear_charges=raw["z"], energies=raw["E"], forces=raw["F"])
    for ours, theirs in zip(read(path), read(FILES / "md17_ethanol_3.npz"), strict=True):
        assert ours.energy == theirs.energy
        np.testing.assert_array_equal(ours.forces, theirs.forces)


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("CCO", 0),
        ("[NH4+]", 1),
        ("[Ca++]", 2),
        ("[Fe+3]", 3),
        ("[O-:1][N+:2](=[O:3])[C:4]", 0),
        ("[O-2:1]", -2),
        ("C[C@@H]([NH3+])C(=O)[O-].[Cl-]", -1),
        ("C#C-C", 0),
    ],
)
def test_formal_charge(smiles: str, charge: int) -> None:
    assert formal_charge(smiles) == charge


# --- round trips ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".xyz", ".extxyz.gz"])
def test_extxyz_round_trip(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    frames = [
        methane(energy=-1102.123456789012, forces=rng.normal(size=(5, 3)), charge=1, level="A/B"),
        methane(group="F/C=C\\F", subset="a b"),
        methane(cell=np.diag([9.0, 8.0, 7.0]), pbc=(True, False, True), energy=0.0),
        methane(group="F"),
        methane(group="F F"),
    ]
    path = tmp_path / f"frames{suffix}"
    write_extxyz(path, frames)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    for got, want in zip(read(path), frames, strict=True):
        assert_same(got, want)


@pytest.mark.parametrize(
    "group",
    [
        "[H][H]",
        "[Na+].[Cl-]",
        "O=C=O",
        "[O-][N+](=O)C",
        "F F",
        "T",
        "N#N O",
        "C/C=C\\C",
        "1",
        "[1,2]",
    ],
)
def test_extxyz_keeps_any_smiles(tmp_path: Path, group: str) -> None:
    write_extxyz(tmp_path / "a.xyz", [methane(group=group)])
    assert read(tmp_path / "a.xyz")[0].group == group


def test_spice_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [
        methane(energy=-1102.1, forces=rng.normal(size=(5, 3)), charge=1, subset="s", level="L"),
        methane(energy=-1101.9, forces=rng.normal(size=(5, 3)), charge=1, subset="s", level="L"),
        methane(group="F/C=C\\F", level="L"),
    ]
    path = tmp_path / "frames.h5"
    write_spice(path, frames)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    for got, want in zip(read(path), frames, strict=True):
        assert_same(got, want)
    with h5py.File(path) as file:  # a gradient on disk, not forces
        gradient = file["C"]["dft_total_gradient"][0]
    assert frames[0].forces is not None
    np.testing.assert_allclose(gradient * 51.4220675, -frames[0].forces, rtol=1e-6)


def assert_same(got: Record, want: Record) -> None:
    np.testing.assert_array_equal(got.numbers, want.numbers)
    np.testing.assert_allclose(got.positions, want.positions, atol=1e-8)
    assert (got.energy is None) == (want.energy is None)
    if want.energy is not None:
        assert got.energy == pytest.approx(want.energy, abs=1e-9)
    for name in ("forces", "cell"):
        ours, theirs = getattr(got, name), getattr(want, name)
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            np.testing.assert_allclose(ours, theirs, atol=1e-7)
    for name in ("pbc", "charge", "group", "subset", "level"):
        assert getattr(got, name) == getattr(want, name)


@pytest.mark.parametrize(
    "other",
    [
        {"numbers": np.array([1, 1, 1, 1, 6])},
        {"charge": 1},
        {"energy": None},
        {"cell": np.eye(3) * 9, "pbc": (True,) * 3},
        {"level": "another"},
    ],
)
def test_spice_refuses_what_it_cannot_hold_and_leaves_the_old_file(
    tmp_path: Path, other: dict
) -> None:
    path = tmp_path / "frames.h5"
    path.write_bytes(b"old")
    with pytest.raises(DataError, match="SPICE's layout"):
        write_spice(path, [methane(energy=1.0), methane(**{"energy": 1.0} | other)])
    assert path.read_bytes() == b"old"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    for write, name in ((write_extxyz, "a.xyz"), (write_spice, "a.h5")):
        path = tmp_path / name
        path.write_bytes(b"old")
        broken = methane(energy=-1.0, forces=np.zeros((2, 2)))
        with pytest.raises(Exception, match=r"shape|broadcast|reshape|length"):
            write(path, [methane(energy=-1.0, forces=np.zeros((5, 3))), broken])
        assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "a.xyz"]


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "rmd17_aspirin_3.xyz",
        "acac_3.xyz.gz",
        "md17_ethanol_3.npz",
        "qm22_n_methylacetamide_3.npz",
        "spice_monomers_3.h5",
        "concatenated_3.h5",
    ],
)
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_named(tmp_path: Path, name: str, kept: float) -> None:
    whole = (FILES / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DataError, match=name) as caught:
        read(path)
    assert any(word in str(caught.value) for word in ("again", "Supported"))


@pytest.mark.parametrize("name", ["a.npz", "a.h5", "a.xyz", "a.xyz.gz"])
def test_other_content_and_absent_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(DataError, match="no such file"):
        read(path)
    path.write_bytes(b"<html>Not found</html>\n")
    with pytest.raises(DataError, match=name):
        read(path)


def test_unknown_formats_list_the_supported_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Supported: .*SPICE .*\.h5"):
        read("structure.pdb")
    np.savez(tmp_path / "a.npz", weights=np.ones(3))
    with pytest.raises(DataError, match=r"it holds weights, .*Supported: .*MD17"):
        read(tmp_path / "a.npz")


def test_misspelt_options_are_refused() -> None:
    with pytest.raises(DataError, match="no option 'unit'. It has: units, level"):
        read(FILES / "md17_ethanol_3.npz", unit="eV")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "exploded").touch, ())

    path = npz(tmp_path, E=np.array([Bomb()], dtype=object))
    with pytest.raises(DataError, match="data.npz"):
        read(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(("key", "shape"), [("R", (3, 8, 3)), ("F", (2, 9, 3)), ("E", (2,))])
def test_arrays_that_do_not_belong_together(tmp_path: Path, key: str, shape: tuple) -> None:
    with pytest.raises(DataError, match=f"'{key}' must have shape"):
        read_md17(npz(tmp_path, **{key: np.zeros(shape)}))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("offset", lambda o: o[::-1]),
        ("offset", lambda o: o + 1),
        ("molecule", lambda m: m + 7),
        ("energy", lambda e: e[:-1]),
        ("forces", lambda f: f[:-1]),
    ],
)
def test_concatenated_layout_is_checked(tmp_path: Path, name: str, change) -> None:
    path = tmp_path / "frames.h5"
    path.write_bytes((FILES / "concatenated_3.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        values = change(file[name][:])
        del file[name]
        file[name] = values
    with pytest.raises(DataError, match=f"frames.h5: .*'{name}'"):
        read(path)


def test_spice_group_that_is_no_molecule(tmp_path: Path) -> None:
    path = tmp_path / "frames.h5"
    write_spice(path, [methane(energy=1.0)])
    with h5py.File(path, "r+") as file:
        file.create_group("Z_unfinished")
    with pytest.raises(DataError, match="'Z_unfinished' is not a molecule"):
        read_spice(path)


def test_gzip_and_plain_agree(tmp_path: Path) -> None:
    plain = tmp_path / "acac.xyz"
    plain.write_bytes(gzip.decompress((FILES / "acac_3.xyz.gz").read_bytes()))
    for a, b in zip(read_extxyz(plain), read_extxyz(FILES / "acac_3.xyz.gz"), strict=True):
        assert_same(a, b)


def test_several_files_keep_their_order(tmp_path: Path) -> None:
    names = ["spice_monomers_3.h5", "acac_energies_only_2.xyz", "md17_ethanol_3.npz"]
    records = read_all([FILES / name for name in names])
    assert [r.energy for r in records] == [r.energy for n in names for r in read(FILES / n)]
    assert {r.level for r in read_all([FILES / names[1]], level="PBE-D3")} == {"PBE-D3"}
    with pytest.raises(DataError, match="absent.npz"):
        read_all([FILES / names[0], tmp_path / "absent.npz"])
    with pytest.raises(DataError, match="no files"):
        read_all([])
