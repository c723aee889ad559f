"""Millions of generated query lines: a cache of their tokens, vectors in step, batches, and resumes far into them.

    python benchmarks/streaming.py --lines 1_000_000 10_000_000 --output outputs/measured/streaming.json

Each size and phase is a process of its own, so that its peak memory is its own. Words are drawn by Zipf's law, from a
fixed seed; files are written below a temporary folder (--folder names another place) and removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance, write

WORDS, LINES_A_FILE, ROW_GROUP = 50_000, 250_000, 25_000
LANGUAGES = ("en", "de", "fr", "ja")
BATCH, BATCHES, SEED = 1024, 2000, 0
PROMPT, MAX_LENGTH = "query: ", 32
DIMENSION = 64  # of the vectors beside the tokens


def words() -> list[str]:
    """As many different made-up words, the frequent ones short."""
    random, letters = np.random.default_rng(SEED), np.array(list("aeioubcdfghklmnprst"))
    found: dict[str, None] = {}
    while len(found) < WORDS:
        length = 2 + len(found) // 10_000 + int(random.integers(5))
        found["".join(letters[random.integers(len(letters), size=length)])] = None
    return list(found)


def tokenizer() -> Any:
    """A byte-level BPE of 30,000 pieces, trained on the words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    made.train_from_iterator(
        (f" {word}" for word in words()),
        trainers.BpeTrainer(vocab_size=30_000, special_tokens=special, show_progress=False, initial_alphabet=alphabet),
    )
    made.post_processor = processors.TemplateProcessing(single="$A <|endoftext|>", special_tokens=[(special[0], 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=special[0], eos_token=special[0])


def generate(folder: Path, lines: int) -> dict[str, Any]:
    """Write the log: text, language, and the document that was clicked."""
    import pyarrow
    import pyarrow.compute as compute
    import pyarrow.parquet as parquet

    vocabulary = pyarrow.array(words())
    for number, start in enumerate(range(0, lines, LINES_A_FILE)):
        rows, random = min(LINES_A_FILE, lines - start), np.random.default_rng([SEED, number])
        length_N = random.integers(2, 9, size=rows)
        word = np.minimum(random.zipf(1.2, size=length_N.sum()) - 1, WORDS - 1)
        offset = np.concatenate([[0], np.cumsum(length_N)]).astype(np.int32)
        texts = compute.binary_join(pyarrow.ListArray.from_arrays(offset, vocabulary.take(pyarrow.array(word))), " ")
        language = pyarrow.array(LANGUAGES).take(pyarrow.array(np.minimum(random.zipf(1.8, size=rows) - 1, 3)))
        clicked = pyarrow.array((2_000_000 * random.power(0.5, size=rows)).astype(np.int64))  # a few often, most seldom
        table = pyarrow.table({"text": texts, "lang": language, "clicked": clicked})
        parquet.write_table(table, folder / "log" / f"{number:05}.parquet", row_group_size=ROW_GROUP)
    return {"bytes": sum(path.stat().st_size for path in (folder / "log").iterdir())}


def logs(folder: Path) -> list[Path]:
    """The log's files."""
    return sorted((folder / "log").iterdir())


def cache_settings(folder: Path) -> tuple[Any, Any]:
    """A collator, and what a cache is made with."""
    from transformers import PreTrainedTokenizerFast

    from harness.data.collator import Collator
    from harness.data.token_cache import CacheSettings, Tokenise, tokenizer_fingerprint

    if not (folder / "tokenizer").exists():
        tokenizer().save_pretrained(folder / "tokenizer")
    loaded = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    collator = Collator(loaded, prompt=PROMPT, max_length=MAX_LENGTH)
    told = tokenizer_fingerprint(loaded, prompt=PROMPT, max_length=MAX_LENGTH)
    return collator, CacheSettings({"text": Tokenise(collator.tokens, told, len(loaded))}, keys=("clicked",))


def build(folder: Path, lines: int) -> dict[str, Any]:
    """Look through, leave out duplicates, tokenise."""
    from harness.data.token_writer import build_token_cache

    _, settings = cache_settings(folder)
    cache = build_token_cache(folder / "cache", logs(folder), settings)
    return {
        "rows": len(cache), "tokens": sum(shard.tokens for shard in cache.shards),
        "duplicates": sum(shard.left_out["duplicates"] for shard in cache.shards),
        "bytes": sum(path.stat().st_size for path in (folder / "cache").iterdir()),
    }  # fmt: skip


def token_batches(folder: Path) -> Callable[[int], Any]:
    """Batches of cached tokens, no two of a batch with one text or one clicked document."""
    from harness.data.mixture import Mixture, MixtureSource
    from harness.data.stream import TokenBatches
    from harness.data.token_cache import TokenCache

    collator, settings = cache_settings(folder)
    cache = TokenCache.open(folder / "cache", settings, logs(folder))
    source = MixtureSource("log", cache.streams(seed=[SEED]))
    return TokenBatches(Mixture([source], batch_size=BATCH, seed=SEED, temperature=0.7), {"text": collator})


def write_vectors(folder: Path, lines: int) -> dict[str, Any]:
    """The store beside the tokens, of vectors that cost nothing: what is measured is reading the log and writing."""
    from harness.data.shards import open_shards
    from harness.data.token_cache import TokenCache
    from harness.pipeline.work_streams import stream_texts
    from harness.vectors.space import Space
    from harness.vectors.stream_store import Recorded, write_stream_vectors

    cache = TokenCache.open(folder / "cache", cache_settings(folder)[1], logs(folder))
    shards = open_shards(logs(folder), folder / "index.json")
    space = Space("none", PROMPT, "", "mean", DIMENSION, False)
    random_WD = np.random.default_rng(SEED).standard_normal((2**14, DIMENSION), dtype=np.float32)
    store = write_stream_vectors(
        folder / "vectors", Recorded(space, "float16", ""), [(shard.kept, shard.rows) for shard in cache.shards],
        stream_texts(cache, shards, "text", None), lambda texts: random_WD[: len(texts)],
    )  # fmt: skip
    return {"rows": len(store), "bytes": sum(path.stat().st_size for path in (folder / "vectors").iterdir())}


def aligned_batches(folder: Path) -> Callable[[int], Any]:
    """The alignment's batches, as a run makes them: cached tokens, and the stored vectors in step with them."""
    from harness.data.mixture import Mixture, MixtureSource
    from harness.data.token_cache import TokenCache
    from harness.recipe import TrainingSettings
    from harness.training.stream_batches import LoggedRows, MixedAlignmentBatches
    from harness.vectors.stream_store import StreamVectors

    collator, settings = cache_settings(folder)
    cache = TokenCache.open(folder / "cache", settings, logs(folder))
    stored = StreamVectors.open(folder / "vectors", contents=[shard.kept for shard in cache.shards])
    streams = {name: LoggedRows("log", stream, stored) for name, stream in cache.streams(seed=[SEED]).items()}
    mixture = Mixture([MixtureSource("log", streams)], batch_size=BATCH, seed=SEED, temperature=0.7, disjoint=False)
    training = TrainingSettings(steps=1, batch_size=BATCH, learning_rate=1e-3)
    return MixedAlignmentBatches(mixture, collator, training)


def text_batches(folder: Path) -> Callable[[int], Any]:
    """Batches of texts, tokenised as they are read."""
    from harness.data.shards import open_shards
    from harness.data.stream import TextStream

    collator, _ = cache_settings(folder)
    stream = TextStream(open_shards(logs(folder), folder / "index.json"), ("text", "lang"), seed=[SEED])
    return lambda step: collator([row["text"] for row in stream.rows(stream.order.rows(step * BATCH, BATCH))])


def stream(make: Callable[[Path], Callable[[int], Any]]) -> Callable[[Path, int], dict[str, Any]]:
    """Some thousand batches from the start."""

    def work(folder: Path, lines: int) -> dict[str, Any]:
        batches = make(folder)
        count = min(BATCHES, lines // BATCH)
        started = time.perf_counter()
        for step in range(count):
            batches(step)
        return {"batches": count, "lines_per_second": round(count * BATCH / (time.perf_counter() - started))}

    return work


def resume(make: Callable[[Path], Callable[[int], Any]]) -> Callable[[Path, int], dict[str, Any]]:
    """The first batch of a new process at 90 % of the data, and the one after it."""

    def work(folder: Path, lines: int) -> dict[str, Any]:
        cache_settings(folder)  # loading a tokenizer is none of the data's work
        started, processor = time.perf_counter(), time.process_time()
        batches, step = make(folder), lines * 9 // 10 // BATCH
        batches(step)
        first, worked = time.perf_counter(), time.process_time() - processor
        batches(step + 1)
        return {"first_batch_seconds": round(first - started, 3), "first_batch_cpu_seconds": round(worked, 3),
                "next_batch_seconds": round(time.perf_counter() - first, 4)}  # fmt: skip

    return work


PHASES: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "generate": generate, "build": build, "tokens": stream(token_batches), "tokens-resume": resume(token_batches),
    "vectors": write_vectors, "aligned": stream(aligned_batches), "aligned-resume": resume(aligned_batches),
    "texts": stream(text_batches), "texts-resume": resume(text_batches),
}  # fmt: skip


def anonymous_mib() -> float:
    """What this process holds of its own now: files that are mapped are not counted."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def measured(phase: str, folder: Path, lines: int) -> dict[str, Any]:
    """Do a phase in this process, with its seconds and its memory beyond that of the imports."""
    import harness.data.stream
    import harness.data.token_writer
    import harness.pipeline.work_streams
    import harness.training.stream_batches  # noqa: F401

    before, peak, done = anonymous_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, processor = time.perf_counter(), time.process_time()
    try:
        found = PHASES[phase](folder, lines)
    finally:
        done.set()
        watcher.join()
    seconds, worked = time.perf_counter() - started, time.process_time() - processor
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**found, "seconds": round(seconds, 2), "cpu_seconds": round(worked, 2), "imports_mib": round(before),
            "peak_own_mib": round(max(peak[0], before)), "peak_with_mapped_files_mib": round(whole)}  # fmt: skip


def run(lines: int, folder: Path) -> dict[str, Any]:
    """All phases of one size, each in a new process."""
    (folder / "log").mkdir(parents=True)
    found = {}
    for phase in PHASES:
        command = [sys.executable, __file__, "--phase", phase, "--folder", str(folder), "--lines", str(lines)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[phase] = json.loads(answer)
        print(f"{lines:,} {phase}: {found[phase]}", file=sys.stderr)
    found["build"]["lines_per_second"] = round(lines / found["build"]["seconds"])
    return found


def markdown(results: dict[str, Any]) -> str:
    """A table for RESULTS.md."""
    columns = {
        "seconds": "seconds", "of processor": "cpu_seconds", "lines/s": "lines_per_second",
        "first batch, s": "first_batch_seconds", "of processor, s": "first_batch_cpu_seconds",
        "peak MiB": "peak_own_mib", "imports": "imports_mib", "peak with files": "peak_with_mapped_files_mib",
    }  # fmt: skip
    rows = ["| " + " | ".join(["lines", "phase", *columns]) + " |", "|---" * (2 + len(columns)) + "|"]
    for lines, phases in results["sizes"].items():
        for phase, found in phases.items():
            cells = [f"{found[key]:,}" if key in found else "-" for key in columns.values()]
            rows.append("| " + " | ".join([f"{int(lines):,}", phase, *cells]) + " |")
    told = results["provenance"]
    machine = ", ".join(f"{key} {value}" for key, value in told["hardware"].items())
    conditions = f"Commit {told['commit']}; {told['started'][:10]}; {machine}; {told['note'] or 'idle machine'}."
    return "\n".join([conditions, "", *rows])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--output", type=Path, default=Path("outputs/measured/streaming.json"))
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        print(json.dumps(measured(options.phase, options.folder, options.lines[0])))
        return
    told, sizes = provenance(command=" ".join(["python", *sys.argv]), seed=SEED, note=options.note), {}
    for lines in options.lines:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="streaming-") as folder:
            sizes[str(lines)] = run(lines, Path(folder))
    conditions = {"batch": BATCH, "batches": BATCHES, "words": WORDS, "prompt": PROMPT, "max_length": MAX_LENGTH,
                  "lines_a_file": LINES_A_FILE, "row_group": ROW_GROUP, "dimension": DIMENSION}  # fmt: skip
    results = {"provenance": told, "conditions": conditions, "sizes": sizes}
    write(options.output, results)
    print(markdown(results))


if __name__ == "__main__":
    main()
