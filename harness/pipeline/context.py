"""What the steps of one run share: the recipe, the folder, the data set, the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.prepare import load_dataset
from harness.data.records import Dataset
from harness.pipeline.folder import RunFolder
from harness.pipeline.labels import Kept, kept_labels
from harness.pipeline.stop import StopRequest
from harness.recipe import EncoderSettings, Recipe, TrainingSettings
from harness.runtime.distributed import pick_device, use_bf16
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import is_main_process
from harness.vectors.index import VectorIndex, saved_kind
from harness.vectors.space import Space, require_same_space
from harness.vectors.store import Manifest, StoreRows, VectorStore

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from harness.encoders.encoder import Encoder


@dataclass
class Run:
    """A recipe being carried out in a folder."""

    recipe: Recipe
    folder: RunFolder
    keys: Mapping[str, str]
    stop: StopRequest | None = None

    @cached_property
    def dataset(self) -> Dataset:
        """The prepared data."""
        return load_dataset(self.folder.data)

    @cached_property
    def labels(self) -> Kept:
        """The labels that judge evaluations, read once."""
        return kept_labels(self.folder)

    @property
    def is_main(self) -> bool:
        """Whether this process writes what all have done together."""
        return is_main_process()

    @cached_property
    def device(self) -> torch.device:
        """Where this process computes."""
        import torch

        if self.recipe.launch.threads:
            torch.set_num_threads(self.recipe.launch.threads)
        return pick_device(self.recipe.launch.device)

    @cached_property
    def accelerator(self) -> Accelerator:
        """One for all stages of this process; number formats are set by each stage, not here."""
        from accelerate import Accelerator

        trackers: list[Any] = list(self.recipe.tracking.trackers)
        made = Accelerator(
            cpu=self.device.type == "cpu", log_with=trackers or None, project_dir=str(self.folder.root / "logs")
        )
        told = {"mixed_precision": (made.mixed_precision, "no"),
                "gradient_accumulation_steps": (made.gradient_accumulation_steps, 1)}  # fmt: skip
        wrong = [
            Problem(f"the launcher sets {name}", where="accelerate launch", got=str(got), allowed=str(allowed),
                    next="leave it to the recipe's training.precision and training.accumulate")
            for name, (got, allowed) in told.items() if got != allowed
        ]  # fmt: skip
        if wrong:
            raise InputError(wrong)
        return made

    def precision(self, training: TrainingSettings | None) -> bool:
        """Whether vectors that only guide a training are computed in bf16."""
        return use_bf16(training.precision if training else "auto", self.device)

    def open(self, folder: Path, *, attention: str = "sdpa", bf16: bool = False) -> Encoder:
        """An encoder from a folder of this run, on the device; its backbone in fp32 or bfloat16."""
        from harness.encoders.folder import open_encoder

        return open_encoder(folder, dtype=_dtype(bf16), attention=attention).to(self.device)

    def load(self, settings: EncoderSettings, *, attention: str = "sdpa", bf16: bool = False) -> Encoder:
        """An encoder from outside, as the recipe describes it, on the device; its backbone in fp32 or bfloat16."""
        from harness.encoders.folder import load_encoder

        return load_encoder(settings, dtype=_dtype(bf16), attention=attention).to(self.device)

    def attention(self, training: TrainingSettings) -> str:
        """``auto``: eager on the CPU, where it is fastest for short texts; SDPA elsewhere."""
        if training.attention != "auto":
            return training.attention
        return "eager" if self.device.type == "cpu" else "sdpa"

    # ------------------------------------------------------------------------------------------ vectors at rest

    def store(self, name: str) -> VectorStore:
        """A store of this run, by its name below ``vectors/``."""
        return VectorStore.open(self.folder.vectors / name)

    def store_manifest(self, name: str) -> Manifest:
        """What a store of this run says of itself, without opening it."""
        return Manifest.read(self.folder.vectors / name)

    def index_of(self, store: VectorStore) -> VectorIndex:
        """An index over a store, rows in the data set's document order."""
        documents = self.dataset.documents
        return self.index_over(StoreRows(store, store.rows_of(documents.ids)))

    def frozen_index(self) -> VectorIndex:
        """The index over the teacher's document vectors, as the embed step saved it.

        A recipe that has come to name another searcher gets that one, in memory, over the same vectors.
        """
        space, wanted = self.space(self.folder.teacher), self.recipe.evaluate.searcher
        if wanted != "auto" and wanted != saved_kind(self.folder.index):
            store = self.store("documents")
            require_same_space(store.space, space, str(store.folder), "the encoder")
            return self.index_of(store)
        sha256 = self.store_manifest("documents").sha256
        return VectorIndex.load(self.folder.index, space, self.dataset.documents.ids, store_sha256=sha256)

    def index_over(self, document_ND: Any) -> VectorIndex:
        """An index over vectors in the data set's document order."""
        documents = self.dataset.documents
        partition = documents.languages if self.dataset.search_within else None
        kind = self.recipe.evaluate.searcher
        return VectorIndex.build(document_ND, documents.ids, kind=kind, partition_N=partition)

    def space(self, folder: Path) -> Space:
        """The target space recorded in an encoder's folder."""
        from harness.runtime.process import read_json

        return Space.from_json(read_json(folder / "harness.json")["space"])


def _dtype(bf16: bool) -> torch.dtype:
    import torch

    return torch.bfloat16 if bf16 else torch.float32
