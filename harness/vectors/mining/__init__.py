"""Hard negatives: the top of the index without what may not be a negative, in bounded memory, with an audit.

    filters.py       hits and what is known about them in, what each fell to out: pure arrays
    model_scores.py  a relevance model's scores of pairs, from a file
    blocks.py        blocks of queries through index and filters, by one process or several
    parts.py         what was mined at rest
    audit.py         counts that add up, histograms, samples to read
"""

from harness.vectors.mining.blocks import Ground, mine
from harness.vectors.mining.parts import load_mined, read_tables

__all__ = ["Ground", "load_mined", "mine", "read_tables"]
