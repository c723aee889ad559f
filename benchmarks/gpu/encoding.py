"""Bulk encoding with full-size Qwen3 shapes: texts and tokens a second, without padding against padded, in bf16.

    python benchmarks/gpu/encoding.py --shapes 0.6b 8b
    python benchmarks/gpu/encoding.py --tiny            # on any machine, in seconds

What is measured is ``Encoder.encode``: tokenising, sorting by length, batches of a token budget, copying out. Weights
and texts are random (words that are one token each, so tokenising is cheaper than it will be). The second call is
measured. The vectors of both ways are compared.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from shapes import (
    SHAPES,
    Texts,
    build,
    flops,
    forget_peak,
    peak_gib,
    peak_rate,
    provenance,
    table,
    wait,
    write,
)


def sentences(length_N: np.ndarray, vocabulary: int) -> list[str]:
    """Texts of so many tokens, the one that ends a text included."""
    random = np.random.default_rng(3)
    drawn = random.integers(1, vocabulary, size=int(length_N.sum()))
    return [
        " ".join(f"w{number}" for number in part[:-1].tolist()) for part in np.split(drawn, np.cumsum(length_N)[:-1])
    ]


def measure(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Both ways with one shape."""
    shape, bf16 = SHAPES[name], device.type == "cuda"
    encoder = build(shape, device, torch.bfloat16 if bf16 else torch.float32, options.longest)
    random = np.random.default_rng(1)
    lengths = Texts(options.median, options.median, options.sigma, options.longest)
    length_N = lengths.lengths("document", options.texts, random)
    texts, found, vectors = sentences(length_N, shape.vocabulary), {}, {}
    needed, peak = flops(shape, length_N, trained=None)["useful"], peak_rate(device, options.peak_tflops)
    for way, unpadded in (("padded", False), ("unpadded", True)):
        encoder.set_unpadded(unpadded)
        encode = {"side": "document", "bf16": bf16, "batch_tokens": options.batch_tokens}
        encoder.encode(texts[: max(64, options.texts // 8)], **encode)
        forget_peak(device)
        wait(device)
        started = time.perf_counter()
        vectors[way] = encoder.encode(texts, **encode)
        wait(device)
        took = time.perf_counter() - started
        found[way] = {
            "seconds": took, "texts_a_second": len(texts) / took, "tokens_a_second": float(length_N.sum()) / took,
            "mfu": needed / took / peak if peak else None, "peak_gib": peak_gib(device),
        }  # fmt: skip
    cosine_N = (vectors["padded"] * vectors["unpadded"]).sum(1)
    found["equality"] = {"lowest_cosine": float(cosine_N.min()), "equal": bool(cosine_N.min() > 0.99)}
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; 1 if the vectors differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.6b", "4b", "8b"])
    parser.add_argument("--tiny", action="store_true", help="a tiny shape and few texts, on any machine")
    parser.add_argument("--texts", type=int, default=8192)
    parser.add_argument("--median", type=int, default=120, help="tokens of a text")
    parser.add_argument("--sigma", type=float, default=0.8, help="of the lengths' logarithms")
    parser.add_argument("--longest", type=int, default=1024)
    parser.add_argument("--batch-tokens", type=int, default=32_768)
    parser.add_argument("--minutes", type=float, default=60.0, help="no shape begins later")
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("--output", type=Path, default=Path("outputs/measured/gpu-encoding.json"))
    options = parser.parse_args(arguments)
    if options.tiny:
        vars(options).update(shapes=["tiny"], texts=64, median=8, longest=32, batch_tokens=128)
    from harness.runtime.distributed import pick_device

    device = pick_device("auto")
    if device.type == "cpu" and not options.tiny:
        raise SystemExit("no GPU is visible; --tiny runs the script on a CPU and measures nothing of interest")
    ends, found, rows = time.monotonic() + 60 * options.minutes, {}, []
    for name in options.shapes:
        if time.monotonic() > ends:
            rows.append([name, "no time left", *[None] * 4])
            continue
        try:
            found[name] = measure(name, options, device)
        except torch.OutOfMemoryError:
            rows.append([name, "out of memory", *[None] * 4])
            continue
        finally:
            forget_peak(device)
        for way in ("padded", "unpadded"):
            values = found[name][way]
            rows.append([name, way, f"{values['texts_a_second']:,.0f}", f"{values['tokens_a_second']:,.0f}",
                         f"{100 * values['mfu']:.1f}" if values["mfu"] is not None else None,
                         f"{values['peak_gib']:.1f}" if values["peak_gib"] is not None else None])  # fmt: skip
    told = provenance(device)
    write(options.output, vars(options), told, found)
    print(table(["shape", "batches", "texts/s", "tokens/s", "MFU %", "peak GiB"], rows))
    for name, values in found.items():
        print(f"\n{name}: lowest cosine between the two ways {values['equality']['lowest_cosine']:.5f}")
    print(f"\n{told.get('gpu', told['hardware']['cpu'])}. Commit {told['commit']}; torch {told['versions']['torch']}.")
    return 0 if all(values["equality"]["equal"] for values in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
