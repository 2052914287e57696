"""What molecules that a model is tested on have to do with those that it was trained on."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

from mlpot.data.lengths import pair_name
from mlpot.data.record import Record


@cache
def canonical(smiles: str) -> str:
    """One spelling for all; a name that is no SMILES ("water", "ILE") stays as it is."""
    from rdkit import Chem, RDLogger

    RDLogger.DisableLog("rdApp.*")
    molecule = Chem.MolFromSmiles(smiles)
    return smiles if molecule is None else Chem.MolToSmiles(molecule)


def parts(group: str) -> list[str]:
    """Molecules of a group: two of a dimer."""
    return [canonical(part) for part in group.split(".")]


def molecules(records: Iterable[Record]) -> int:
    """How many different ones, dimers being one each, whatever their spelling."""
    return len({tuple(sorted(parts(group))) for group in {r.group for r in records}})


def partners(train: Iterable[Record]) -> set[str]:
    """Molecules of training, alone or in dimers."""
    return {part for group in {r.group for r in train} for part in parts(group)}


def never_met(train: Iterable[Record], test: Iterable[Record]) -> list[Record]:
    """Those of `test` of which no part is in training, not even as the partner in a dimer."""
    known = partners(train)
    return [r for r in test if known.isdisjoint(parts(r.group))]


def bonds(train: Iterable[Record]) -> dict[str, int]:
    """Pairs of elements that are bonded in training, by its SMILES, and in how many molecules."""
    from rdkit import Chem

    counts: Counter[str] = Counter()
    for smiles in sorted(partners(train)):
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is not None:  # names are of water and amino acids
            ends = (
                (bond.GetBeginAtom().GetAtomicNum(), bond.GetEndAtom().GetAtomicNum())
                for bond in Chem.AddHs(molecule).GetBonds()
            )
            counts.update({pair_name(*pair) for pair in ends})
    return dict(sorted(counts.items()))


def shared_partners(train: Iterable[Record], dimers: Iterable[Record]) -> dict[str, int]:
    """Of so many dimers ("dimers"), how many have "both" partners in training, alone or in another
    dimer, and how many "one"."""
    known = partners(train)
    counts = Counter(
        sum(part in known for part in parts(group)) for group in {r.group for r in dimers}
    )
    return {"dimers": counts.total(), "both": counts[2], "one": counts[1]}


def frames_of(smiles: str, train: Sequence[Record]) -> dict[str, int]:
    """Training frames of a molecule: "alone", and "in dimers"."""
    asked, groups = canonical(smiles), Counter(r.group for r in train)
    alone = sum(n for group, n in groups.items() if parts(group) == [asked])
    both = sum(n for group, n in groups.items() if "." in group and asked in parts(group))
    return {"alone": alone, "in dimers": both}
