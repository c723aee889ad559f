"""What the GPU benchmarks share: shapes with random weights, synthetic texts, FLOPs, peak rates, provenance."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import provenance as common  # noqa: E402

AIM = 0.45  # model FLOP utilisation with adapters


@dataclass(frozen=True)
class Shape:
    """A Qwen3: hidden size, layers, heads, heads of keys and values, their size, feed-forward width, vocabulary."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int


# The three as Qwen3-Embedding has them; 190m is the 0.6b one cut to 4 layers and feed-forward width 768. The
# vocabularies of the large ones differ from that of the small one by a few unused rows.
SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 16, 128, 500),
    "190m": Shape(1024, 4, 16, 8, 128, 768, 151_669),
    "0.6b": Shape(1024, 28, 16, 8, 128, 3072, 151_669),
    "4b": Shape(2560, 36, 32, 8, 128, 9728, 151_669),
    "8b": Shape(4096, 36, 32, 8, 128, 12288, 151_669),
}
# Dense bf16 with fp32 sums, in TFLOP/s, from the makers' data sheets; the first name that the device's contains.
PEAKS = {
    "B200": 2250.0, "GH200": 989.4, "H200": 989.4, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.4, "A100": 311.9,
    "L40S": 362.0, "L4": 121.0, "A10": 125.0, "RTX 4090": 165.2, "RTX 3090": 71.0,
}  # fmt: skip


@dataclass(frozen=True)
class Texts:
    """How long texts are: log-normal with these medians and one sigma, cut to 4 and ``longest`` tokens."""

    query: int
    document: int
    sigma: float
    longest: int

    def lengths(self, kind: str, count: int, random: np.random.Generator) -> np.ndarray:
        """``count`` lengths of queries or documents, in tokens."""
        median = self.query if kind == "query" else self.document
        drawn = np.exp(np.log(median) + self.sigma * random.standard_normal(count))
        return np.clip(drawn.round().astype(np.int64), min(4, self.longest), self.longest)


def build(shape: Shape, device: torch.device, dtype: torch.dtype, longest: int) -> Any:
    """An encoder of that shape with random weights, made on the device: last-token pooling, length 1, no prompts."""
    from transformers import AutoModel, Qwen3Config

    from harness.encoders.encoder import Encoder

    config = Qwen3Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads, head_dim=shape.head_size,
        intermediate_size=shape.feed_forward, max_position_embeddings=32_768, pad_token_id=0, eos_token_id=0,
        bos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        backbone = AutoModel.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return Encoder(backbone.to(device), tokenizer(shape.vocabulary), pooling="lasttoken", max_length=longest).eval()


def tokenizer(vocabulary: int) -> Any:
    """Words ``w1 w2 ...`` are tokens 1, 2, ...; token 0 ends a text and pads on the left, as Qwen3's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"<|endoftext|>": 0, **{f"w{number}": number for number in range(1, vocabulary)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=end, eos_token=end, padding_side="left")


class Pairs:
    """Batches as the trainer asks for them: random token ids, each query with its positive and hard negatives."""

    def __init__(self, encoder: Any, texts: Texts, settings: Any, negatives: int) -> None:
        from harness.data.collator import Collator

        self.texts, self.count, self.negatives = texts, settings.batch_size, negatives
        self.vocabulary = encoder.token_table.num_embeddings
        self.collate = Collator(
            encoder.tokenizer, prompt="", max_length=texts.longest, chunks=settings.chunks,
            chunk_tokens=settings.chunk_tokens, unpadded=encoder.unpadded,
        )  # fmt: skip

    def lengths(self, step: int) -> np.ndarray:
        """The tokens of each text of a step, queries first."""
        random = np.random.default_rng([step, 1])
        documents = self.count * (1 + self.negatives)
        parts = [self.texts.lengths("query", self.count, random), self.texts.lengths("document", documents, random)]
        return np.concatenate(parts)

    def __call__(self, step: int) -> list[Mapping[str, Any]]:
        random, length_B = np.random.default_rng([step, 2]), self.lengths(step)
        token_T = random.integers(1, self.vocabulary, size=int(length_B.sum()))
        tokens = self.collate.pad([part.tolist() for part in np.split(token_T, np.cumsum(length_B)[:-1])])
        queries, documents = self.count, self.count * (1 + self.negatives)
        own_QN = torch.eye(queries, dtype=torch.bool).repeat(1, 1 + self.negatives)
        batch = {
            "chunks": tokens.chunks, "restore": tokens.restore, "queries": queries,
            "positive_Q": torch.arange(queries), "forbidden_QN": torch.zeros(queries, documents, dtype=torch.bool),
            "weight_Q": None, "own_QN": own_QN, "related_QG": torch.eye(queries, dtype=torch.bool),
            "ids": [f"{step}-{number}" for number in range(queries)],
        }  # fmt: skip
        return [batch]


def flops(shape: Shape, length_B: np.ndarray, *, trained: str | None, adapters: int = 0) -> dict[str, float]:
    """Floating point operations that texts of these lengths need; ``useful`` counts no padding and nothing twice.

    A matrix of P weights costs 2 P a token forward, 2 P for the gradient of its input and 2 P for its own: 6 P where
    it is trained (``full``), 4 P where it rests below adapters (``lora``), which are trained themselves: 6 P of
    theirs. Causal attention costs 2 L^2 A E a layer forward (L tokens, A heads of size E: half of all pairs), and
    twice that backward. Not counted: norms, activations, the token table, the loss, the optimiser.
    ``forward`` is what computing activations a second time costs.
    """
    attention = shape.heads * shape.head_size
    a_layer = shape.hidden * (2 * attention + 2 * shape.key_heads * shape.head_size + 3 * shape.feed_forward)
    tokens, squares = float(length_B.sum()), float((length_B.astype(np.float64) ** 2).sum())
    pairs = 2 * squares * attention * shape.layers
    forward = 2 * tokens * (shape.layers * a_layer + adapters) + pairs
    if trained is None:
        return {"useful": forward, "forward": forward}
    times = {"lora": 4, "full": 6}[trained]
    useful = tokens * (times * shape.layers * a_layer + 6 * adapters) + 3 * pairs
    return {"useful": useful, "forward": forward}


def peak_rate(device: torch.device, told: float | None) -> float | None:
    """FLOP/s in bf16; None on a CPU, of which nothing is claimed, and for a device that the table does not have."""
    if told is not None:
        return told * 1e12
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate * 1e12 for known, rate in PEAKS.items() if known in name), None)


def wait(device: torch.device) -> None:
    """Until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gib(device: torch.device) -> float | None:
    """The most memory that tensors took since ``forget_peak``; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def forget_peak(device: torch.device) -> None:
    """Free what can be freed, and measure from here on."""
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown; None is a dash."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join("-" if cell is None else str(cell) for cell in line) + " |" for line in lines)


def provenance(device: torch.device) -> dict[str, Any]:
    """Commit, machine, device, versions."""
    told = common.provenance(device=str(device))
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        told |= {"gpu": gpu.name, "gpu_gib": round(gpu.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return told


def write(path: Path, options: Mapping[str, Any], told: Mapping[str, Any], measured: Any) -> None:
    """The JSON beside the table."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    shapes = {name: asdict(shape) for name, shape in SHAPES.items()}
    common.write(path, {"options": plain, **told, "shapes": shapes, "measured": measured})
