"""The peers. Each module imports its package only when it is asked for a potential."""

from benchmarks.speed.candidates import Candidate
from benchmarks.speed.peers import aimnet2, ani, mace, pyg, so3lr, torchmdnet, xtb


def candidates() -> list[Candidate]:
    """Everything of every peer that can be timed, in the order of the tables."""
    peers = [*torchmdnet.PEERS, pyg.PEER, aimnet2.PEER, mace.PEER, *ani.PEERS, so3lr.PEER, xtb.PEER]
    found = [candidate for peer in peers for candidate in peer.candidates()]
    return found + torchmdnet.openmmml_candidates()
