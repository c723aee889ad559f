from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from harness.encoders.folder import open_encoder
from harness.encoders.tokens import read_tokenizer, unknown_share
from harness.runtime.errors import InputError


def test_the_share_counts_the_texts_own_tokens(tiny_bert: Path) -> None:
    tokenizer = read_tokenizer(tiny_bert)
    assert unknown_share(tokenizer, ["cat face"]) == 0
    assert unknown_share(tokenizer, ["cat 日"]) == 0.5
    assert unknown_share(tokenizer, ["cat", "日", "face 本 cat"]) == pytest.approx(2 / 5)
    assert unknown_share(tokenizer, []) == unknown_share(tokenizer, [""]) == 0


def test_truncation_and_padding_of_the_file_play_no_part(tiny_bert: Path) -> None:
    tokenizer = read_tokenizer(tiny_bert)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    assert unknown_share(tokenizer, ["cat cat cat 日", "cat"]) == pytest.approx(1 / 5)
    assert tokenizer.truncation is not None and tokenizer.padding is not None  # the caller's own is left as it was


def test_byte_level_tokenizers_know_everything(tiny_qwen3: Path) -> None:
    assert unknown_share(read_tokenizer(tiny_qwen3), ["日本 🙂"]) == 0


def test_unigram_names_its_unknown_piece_by_number() -> None:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("cat", -1.0), ("▁", -2.0)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert unknown_share(tokenizer, ["cat dog"]) == 0.5


def test_a_tokenizer_of_transformers_is_fine_too(tiny_bert: Path) -> None:
    assert unknown_share(open_encoder(tiny_bert).tokenizer, ["cat 日"]) == 0.5


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer.json"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not readable as a tokenizer"):
        read_tokenizer(tmp_path)
