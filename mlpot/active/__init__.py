"""Active learning: simulate, label what the guard flags, fine-tune, until the guard is quiet.

`refine` is the loop; `explore` simulates, `choose` picks frames, `sanity` knows a molecule from
debris, `records` keeps what was done so that a killed run goes on.
"""
