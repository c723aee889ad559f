"""Tiny sentence-transformers folders, built from texts in memory: no network, the same bytes for the same arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from harness.encoders.encoder import Encoder
from harness.encoders.folder import save_encoder

QWEN_PROMPT = "Instruct: Given a query, find its documents\nQuery:"


def word_piece_tokenizer(texts: Iterable[str], vocab: int = 1000) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece over the texts' characters and most frequent words."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )  # fmt: skip
    letters = sorted({letter for word in words for letter in word})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = special + letters + [f"##{letter}" for letter in letters]
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    pieces += frequent[: max(vocab - len(pieces), 0)]
    ids = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", padding_side="right",
    )  # fmt: skip


def byte_level_tokenizer(texts: Iterable[str], vocab: int = 1000) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the texts that appends <|endoftext|> and pads on the left, like Qwen3's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|endoftext|>", padding_side="left"
    )


def write_tiny_bert(
    folder: Path,
    *,
    texts: Iterable[str],
    hidden: int = 32,
    layers: int = 4,
    heads: int = 2,
    vocab: int = 1000,
    seed: int = 0,
) -> Path:
    """A BERT with random weights, mean pooling and normalisation. Returns ``folder``."""
    tokenizer = word_piece_tokenizer(texts, vocab)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=2 * hidden, max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = BertModel(config, add_pooling_layer=False)
    save_encoder(Encoder(backbone, tokenizer, pooling="mean", max_length=64), folder)
    return folder


def write_tiny_qwen3(
    folder: Path,
    *,
    texts: Iterable[str],
    hidden: int = 32,
    layers: int = 4,
    heads: int = 2,
    vocab: int = 1000,
    seed: int = 0,
) -> Path:
    """A Qwen3 with random weights, last-token pooling, a query prompt, its own head size. Returns ``folder``."""
    tokenizer = byte_level_tokenizer(texts, vocab)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=max(heads // 2, 1), head_dim=hidden // heads // 2 * 2 + 4, intermediate_size=2 * hidden,
        max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = Qwen3Model(config)
    prompts = {"query": QWEN_PROMPT, "document": ""}
    save_encoder(Encoder(backbone, tokenizer, pooling="lasttoken", prompts=prompts, max_length=128), folder)
    return folder
