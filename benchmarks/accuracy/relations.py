"""What molecules that a model is tested on have to do with those that it was trained on."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

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


def shared_partners(train: Iterable[Record], dimers: Iterable[Record]) -> dict[str, int]:
    """Of so many dimers ("dimers"), how many have "both" partners in training, alone or in another
    dimer, and how many "one"."""
    known = {part for group in {r.group for r in train} for part in parts(group)}
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
