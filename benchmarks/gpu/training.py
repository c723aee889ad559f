"""Training steps of full-size Qwen3 shapes: tokens a second, model FLOP utilisation, peak memory.

    python benchmarks/gpu/training.py --quick
    python benchmarks/gpu/training.py --shapes 8b --cases lora "lora, padded" --queries 256
    python benchmarks/gpu/training.py --tiny            # on any machine, in seconds: does the script still run?

What is measured is harness' own: ``fit`` with its trainer, ``Contrastive`` with the Qwen3 loss, adapters, chunks,
cached gradients, AdamW in fp32, bf16 autocast. Weights and token ids are random; no tokenizer, data or network is
needed. Each case: some steps to warm up, then steps for a while; the clock waits for the device before the first and
after the last of them. MFU: useful operations (``flops`` in shapes.py says which: no padding, nothing that is computed
twice) over seconds and the device's peak in bf16. HFU counts what is computed twice, too. Before the cases of a shape:
cached against direct gradients, and vectors without padding against padded ones, on the same device.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from shapes import (
    AIM,
    SHAPES,
    Pairs,
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

CASES: dict[str, dict[str, Any]] = {  # "trained", and settings of a training
    "lora": {"trained": "lora"},
    "lora, padded": {"trained": "lora", "unpadded": False},
    "lora, checkpointing": {"trained": "lora", "gradient_checkpointing": True},
    "lora, cached": {"trained": "lora", "cached": True},
    "lora, cached, padded": {"trained": "lora", "cached": True, "unpadded": False},
    "lora, cached, checkpointing": {"trained": "lora", "cached": True, "gradient_checkpointing": True},
    "full": {"trained": "full"},
    "full, padded": {"trained": "full", "unpadded": False},
    "full, checkpointing": {"trained": "full", "gradient_checkpointing": True},
    "full, cached": {"trained": "full", "cached": True},
}
CHUNK_TOKENS = {"tiny": 128, "190m": 32_768, "0.6b": 16_384, "4b": 8_192, "8b": 4_096}  # fit into 80 GB
QUICK = {
    "0.6b": ["lora", "lora, padded", "lora, checkpointing", "lora, cached", "full", "full, cached"],
    "4b": ["lora, checkpointing", "lora, cached"],
    "8b": ["lora, checkpointing", "lora, cached"],
}


class Enough(Exception):
    """The steps to be measured are done: the training is broken off, and no checkpoint is written."""


@dataclass
class Clock:
    """Asked by the trainer after every step; ends the training."""

    device: torch.device
    warmup: int
    steps: int
    seconds: float
    started: float = 0.0
    took: float = 0.0
    last: int = 0

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        if step < self.warmup:
            return
        wait(self.device)
        now = time.perf_counter()
        if step == self.warmup:
            self.started = now
            return
        self.took, self.last = now - self.started, step
        if step - self.warmup >= self.steps or self.took > self.seconds:
            raise Enough


def settings_of(shape: str, case: Mapping[str, Any], options: argparse.Namespace) -> Any:
    """A training that never ends by itself."""
    from harness.recipe import TrainingSettings

    changes = {name: value for name, value in case.items() if name != "trained"}
    tokens = options.chunk_tokens or CHUNK_TOKENS[shape]
    chunking = {"chunk_tokens": tokens} if case.get("cached") else {"chunks": options.chunks}
    return TrainingSettings(
        steps=1_000_000, batch_size=options.queries, learning_rate=1e-5, precision=options.precision, **chunking,
        **{"unpadded": True, **changes},
    )  # fmt: skip


def objective(case: Mapping[str, Any]) -> Any:
    """The teacher's, with the Qwen3 loss."""
    from harness.recipe import LossSettings
    from harness.training.objectives import Contrastive

    return Contrastive(0.05, LossSettings(kind="qwen3"), bool(case.get("cached")))


def measure(encoder: Any, shape: str, name: str, options: argparse.Namespace, accelerator: Any) -> dict[str, Any]:
    """One case, in place: the encoder's weights change a little."""
    from harness.training.fit import RunFolder, fit
    from harness.training.placement import trainable
    from harness.training.stages import prepare_parameters

    case, device = CASES[name], accelerator.device
    settings = settings_of(shape, case, options)
    forget_peak(device)
    prepare_parameters(encoder, settings)
    batches = Pairs(encoder, texts_of(options), settings, options.negatives)
    clock = Clock(device, options.warmup, options.steps, options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run = RunFolder(root / "checkpoints", root / "log.jsonl", fingerprint=name, seed=0, what=name, track=clock)
        with contextlib.suppress(Enough):
            fit(encoder, objective(case), batches, None, settings, run, accelerator)
    steps = range(options.warmup, clock.last)
    length_B = np.concatenate([batches.lengths(step) for step in steps])
    adapters = sum(p.numel() for p in trainable(encoder).values()) if case["trained"] == "lora" else 0
    needed = flops(SHAPES[shape], length_B, trained=case["trained"], adapters=adapters)
    again = bool(case.get("cached")) + bool(case.get("gradient_checkpointing"))
    peak = peak_rate(device, options.peak_tflops)
    rate = needed["useful"] / clock.took
    return {
        "steps": len(steps), "seconds_a_step": clock.took / len(steps), "texts_a_step": len(length_B) / len(steps),
        "tokens_a_step": float(length_B.sum()) / len(steps), "tokens_a_second": float(length_B.sum()) / clock.took,
        "teraflops": rate / 1e12, "mfu": rate / peak if peak else None,
        "hfu": (needed["useful"] + again * needed["forward"]) / clock.took / peak if peak else None,
        "peak_gib": peak_gib(device), "trained_parameters": sum(p.numel() for p in trainable(encoder).values()),
        "unpadded": encoder.unpadded,
    }  # fmt: skip


def texts_of(options: argparse.Namespace) -> Texts:
    """The distribution of lengths."""
    return Texts(options.query_tokens, options.document_tokens, options.sigma, options.longest)


def gradients(encoder: Any, case: Mapping[str, Any], options: argparse.Namespace, device: torch.device) -> Any:
    """All gradients of one small batch, and its loss."""
    from harness.runtime.distributed import use_bf16
    from harness.training.feeding import ToDevice
    from harness.training.stages import prepare_parameters

    changes = {"batch_size": min(options.queries, 8), "chunks": 3, "chunk_tokens": None}  # the same chunks each time
    settings = settings_of("tiny", case, options).model_copy(update=changes)
    prepare_parameters(encoder.train(), settings)
    batch = Pairs(encoder, texts_of(options), settings, options.negatives)(0)[0]
    encoder.zero_grad(set_to_none=True)
    bf16 = use_bf16(options.precision, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        logs = objective(case).step(encoder, ToDevice(device)(batch), lambda loss, sync=True: loss.backward())
    found = torch.cat([p.grad.flatten().double().cpu() for p in encoder.parameters() if p.grad is not None])
    encoder.zero_grad(set_to_none=True)
    return logs["loss"], found


def compare(encoder: Any, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Cached against direct gradients, and unpadded against padded ones: the share that differs, and the losses."""
    told: dict[str, Any] = {}
    ways = {"direct": {}, "cached": {"cached": True}, "padded": {"unpadded": False}}
    found = {name: gradients(encoder, way, options, device) for name, way in ways.items()}
    for name in ("cached", "padded"):
        differs = float((found[name][1] - found["direct"][1]).norm() / found["direct"][1].norm())
        told[name] = {"differs": differs, "losses": [found[name][0], found["direct"][0]]}
    # Direct sums the gradients of bf16 copies over chunks in bf16, cached in fp32; attention rounds by its own kernel.
    told["allowed"] = {"cached": 0.02 if options.precision == "bf16" else 1e-4,
                       "padded": 0.05 if options.precision == "bf16" else 1e-4}  # fmt: skip
    told["equal"] = all(told[name]["differs"] <= told["allowed"][name] for name in ("cached", "padded"))
    return told


def run_shape(name: str, cases: list[str], options: argparse.Namespace, accelerator: Any, ends: float) -> Any:
    """The cases of one shape: adapters first, over weights in bf16; then all weights, in fp32."""
    from harness.encoders.lora import add_adapter
    from harness.recipe import LoraSettings

    device = accelerator.device
    found: dict[str, Any] = {}
    for trained in ("lora", "full"):
        own = [case for case in cases if CASES[case]["trained"] == trained]
        if not own or time.monotonic() > ends:
            found |= dict.fromkeys(own, {"not_run": "no time left"})
            continue
        low = trained == "lora" and options.precision == "bf16"
        encoder = build(SHAPES[name], device, torch.bfloat16 if low else torch.float32, options.longest)
        if trained == "lora":
            add_adapter(encoder, LoraSettings(rank=options.rank), seed=0)
            encoder.to(device)
            for parameter_name, parameter in encoder.named_parameters():
                if ".lora_B." in parameter_name:  # zero at first, and with it half of the gradients
                    torch.nn.init.normal_(parameter, std=0.02)
            found["equality"] = guarded(lambda enc=encoder: compare(enc, options, device))
        for case in own:
            if time.monotonic() > ends:
                found[case] = {"not_run": "no time left"}
                continue
            found[case] = guarded(lambda case=case, enc=encoder: measure(enc, name, case, options, accelerator))
            encoder.zero_grad(set_to_none=True)
            print(f"{name} {case}: {found[case]}", file=sys.stderr, flush=True)
        del encoder
        forget_peak(device)
    return found


def guarded(work: Any) -> dict[str, Any]:
    """What ``work`` returns. That it did not fit is a result, too; what else goes wrong does not end the rest."""
    try:
        return work()
    except torch.OutOfMemoryError:
        return {"not_run": "out of memory"}
    except Exception as error:
        traceback.print_exc()
        return {"not_run": " ".join(f"{type(error).__name__}: {error}".split())[:200], "failed": True}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.6b", "4b", "8b"])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--quick", action="store_true", help="the cases that fit into ten minutes on an H100")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape and few steps, on any machine")
    parser.add_argument("--queries", type=int, default=32, help="of a batch")
    parser.add_argument("--negatives", type=int, default=1, help="hard negatives of a query")
    parser.add_argument("--query-tokens", type=int, default=24, help="median")
    parser.add_argument("--document-tokens", type=int, default=160, help="median")
    parser.add_argument("--sigma", type=float, default=0.6, help="of the lengths' logarithms")
    parser.add_argument("--longest", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=4, help="of a batch whose activations are in memory together")
    parser.add_argument("--chunk-tokens", type=int, help=f"with cached gradients; else {CHUNK_TOKENS}")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--warmup", type=int, default=4, help="steps")
    parser.add_argument("--steps", type=int, default=30, help="measured, at most")
    parser.add_argument("--seconds", type=float, default=12.0, help="of a case, at most")
    parser.add_argument("--minutes", type=float, default=60.0, help="of everything: no case begins later")
    parser.add_argument("--peak-tflops", type=float, help="of the device in bf16, if the table does not have it")
    parser.add_argument("--output", type=Path, default=Path("outputs/measured/gpu-training.json"))
    options = parser.parse_args(arguments)
    if options.tiny:
        small = {"shapes": ["tiny"], "queries": 8, "query_tokens": 5, "document_tokens": 12, "longest": 32, "rank": 2,
                 "chunks": 2, "warmup": 1, "steps": 2, "precision": "fp32"}  # fmt: skip
        vars(options).update(small)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; 1 if gradients that must be equal are not."""
    options = parse(arguments)
    from accelerate import Accelerator

    from harness.runtime.distributed import pick_device

    device = pick_device("auto")
    if device.type == "cpu" and not options.tiny:
        raise SystemExit("no GPU is visible; --tiny runs the script on a CPU and measures nothing of interest")
    accelerator = Accelerator(cpu=device.type == "cpu")
    ends = time.monotonic() + 60 * options.minutes
    plan = QUICK if options.quick and not options.tiny else dict.fromkeys(options.shapes, options.cases)
    found = {name: run_shape(name, cases, options, accelerator, ends) for name, cases in plan.items()}
    told = provenance(accelerator.device)
    write(options.output, vars(options), told, found)
    print(report(found))
    peak = peak_rate(accelerator.device, options.peak_tflops)
    claim = f"MFU of {peak / 1e12:,.0f} TFLOP/s; aim with adapters: {AIM:.0%}" if peak else "no MFU is claimed"
    print(f"\n{told.get('gpu', told['hardware']['cpu'])}, {claim}. Commit {told['commit']}; "
          f"torch {told['versions']['torch']}, transformers {told['versions']['transformers']}.")  # fmt: skip
    failed = any(values.get("failed") for cases in found.values() for values in cases.values())
    return int(failed or not all(cases.get("equality", {}).get("equal", True) for cases in found.values()))


def report(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Two tables: the cases, and what must be equal."""
    rows, equal = [], []
    for shape, cases in found.items():
        for case, values in cases.items():
            if case == "equality" and "not_run" not in values:
                equal += [[shape, f"{name} against direct, unpadded", f"{values[name]['differs']:.1e}",
                           f"{values['allowed'][name]:.0e}"] for name in ("cached", "padded")]  # fmt: skip
            elif "not_run" in values:
                rows.append([shape, case, values["not_run"], *[None] * 6])
            else:
                share = [f"{100 * values[key]:.1f}" if values[key] is not None else None for key in ("mfu", "hfu")]
                memory = f"{values['peak_gib']:.1f}" if values["peak_gib"] is not None else None
                numbers = [f"{values['texts_a_step']:.0f}", f"{values['tokens_a_step']:,.0f}",
                           f"{values['seconds_a_step']:.3f}", f"{values['tokens_a_second']:,.0f}"]  # fmt: skip
                rows.append([shape, case, *numbers, *share, memory])
    columns = ["shape", "case", "texts a step", "tokens a step", "s a step", "tokens/s", "MFU %", "HFU %", "peak GiB"]
    return table(columns, rows) + "\n\n" + table(["shape", "gradients", "differ by", "allowed"], equal)


if __name__ == "__main__":
    sys.exit(main())
