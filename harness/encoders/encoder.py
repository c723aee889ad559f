"""Text in, vector out: one encoder, the same object in training, bulk encoding and search.

Axes: B rows of a batch, T tokens, H hidden size, D dimensions, N texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from harness.encoders import unpadded
from harness.encoders.bulk import BulkEncoder
from harness.recipe import Pooling
from harness.runtime.distributed import rank, sum_over_processes, world_size
from harness.runtime.process import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.data.collator import Collator

Side = Literal["query", "document"]
_WINDOW = 20_000  # texts tokenised and sorted together: enough to make batches of near-equal lengths


def pool(hidden_BTH: Tensor, mask_BT: Tensor, pooling: str) -> Tensor:
    """Pool token states to one float32 vector a row; padding may be on either side.

    Args:
        hidden_BTH: last hidden states, any float type.
        mask_BT: 1 for tokens, 0 for padding.
        pooling: ``mean``, ``cls`` (first token) or ``lasttoken``.
    """
    if pooling == "mean":
        weight_BT1 = mask_BT.unsqueeze(-1).float()
        return (hidden_BTH.float() * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1).clamp(min=1.0)
    step_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    if pooling == "cls":
        token_B = (mask_BT * (mask_BT.shape[1] - step_T)).argmax(dim=1)
    else:
        assert pooling == "lasttoken", pooling
        token_B = (mask_BT * (step_T + 1)).argmax(dim=1)
    return hidden_BTH[torch.arange(hidden_BTH.shape[0], device=hidden_BTH.device), token_B].float()


class Encoder(nn.Module):
    """A sentence-transformers module chain: backbone, pooling, projection, normalise; prompts and length travel along.

    Args:
        backbone: gives ``last_hidden_state``; its unused pooler is dropped, its cache switched off.
        tokenizer: a fast tokenizer with a padding token.
        pooling: ``mean``, ``cls`` or ``lasttoken``.
        projection: H -> D after pooling, float32.
        tanh: whether a tanh follows the projection (a stock Dense module may have one).
        normalize: whether vectors have length 1.
        prompts: put before a text, per side.
        max_length: tokens, prompt and special tokens included.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pooling: Pooling,
        projection: nn.Linear | None = None,
        tanh: bool = False,
        normalize: bool = True,
        prompts: Mapping[str, str] | None = None,
        max_length: int = 512,
    ) -> None:
        super().__init__()
        assert projection is not None or not tanh, "a tanh belongs to a projection"
        if getattr(backbone, "pooler", None) is not None:
            setattr(backbone, "pooler", None)  # noqa: B010 - torch types attributes as modules
        backbone.config.use_cache = False
        tokenizer.model_max_length = max_length
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.pooling: Pooling = pooling
        self.projection = projection
        self.tanh = tanh
        self.normalize = normalize
        self.prompts = {"query": "", "document": "", **(prompts or {})}
        self.max_length = max_length
        self.unpadded = False  # see ``set_unpadded``
        self.lower_case = False  # a setting of old folders, carried along; the tokenizer already lowers

    @property
    def token_table(self) -> nn.Embedding:
        """The word-embedding table."""
        table = self.backbone.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        return table

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.token_table.weight.device

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""
        return self.projection.out_features if self.projection is not None else int(self.backbone.config.hidden_size)

    @property
    def layer_count(self) -> int:
        """Transformer layers of the backbone."""
        return int(self.backbone.config.num_hidden_layers)

    @property
    def parameter_count(self) -> int:
        """All parameters, the token table included."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def parameters_without_embeddings(self) -> int:
        """Parameters without the token table, which costs memory but hardly any time."""
        return self.parameter_count - self.token_table.weight.numel()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        chunks: Sequence[Mapping[str, Any]] | None = None,
        **places: Any,
    ) -> Tensor:
        """Encode token ids: one batch, or the chunks of a batch that were padded apart.

        Args:
            input_ids: int64_BT.
            attention_mask: int64_BT, 1 for tokens and 0 for padding on either side.
            chunks: instead of these, any number of maps with them. Their tokens are looked up together: the token
                table's gradient is as large as the table, and so is made once a batch, not once a chunk.
            places: where ``unpadded``, what stands in the mask's place: ``encoders.unpadded`` says what. A padded
                batch is understood then, too.

        Returns:
            vector_BD, float32 also under autocast; length 1 when ``normalize``; chunks one after the other.
        """
        if chunks is None:
            mask = {} if attention_mask is None else {"attention_mask": attention_mask}
            chunk = self._readable({"input_ids": input_ids, **mask, **places})
            return self._vectors(chunk, input_ids=chunk["input_ids"])
        chunks = [self._readable(chunk) for chunk in chunks]
        shapes = [chunk["input_ids"].shape for chunk in chunks]
        row_NH = self.token_table(torch.cat([chunk["input_ids"].flatten() for chunk in chunks]))
        parts = row_NH.split([shape.numel() for shape in shapes])
        vectors = []
        for chunk, shape, part in zip(chunks, shapes, parts, strict=True):
            vectors.append(self._vectors(chunk, inputs_embeds=part.view(*shape, -1)))
        return torch.cat(vectors)

    def set_unpadded(self, wanted: bool) -> None:
        """Whether batches have no padding, from now on; collators made later make them so (``encoders.unpadded``)."""
        switched = unpadded.switch(self.backbone, wanted)
        assert switched, "see encoders.unpadded.choose"
        self.unpadded = wanted

    def _readable(self, chunk: Mapping[str, Any]) -> Mapping[str, Any]:
        return unpadded.without_padding(chunk) if self.unpadded else chunk

    def _vectors(self, chunk: Mapping[str, Any], **tokens: Tensor) -> Tensor:
        """A chunk through the backbone, then pooled, projected and normalised in float32."""
        if self.unpadded:
            where = unpadded.places_of(chunk, self.backbone)
        else:
            where = {"attention_mask": chunk["attention_mask"]}
        hidden_BTH = self.backbone(**tokens, **where).last_hidden_state
        with torch.autocast(hidden_BTH.device.type, enabled=False):
            if self.unpadded:
                vector_BD = unpadded.pool_unpadded(hidden_BTH[0], chunk["cu_seq_lens"], self.pooling)
            else:
                vector_BD = pool(hidden_BTH, chunk["attention_mask"], self.pooling)
            if self.projection is not None:
                bias_D = None if self.projection.bias is None else self.projection.bias.float()
                vector_BD = nn.functional.linear(vector_BD, self.projection.weight.float(), bias_D)
            if self.tanh:
                vector_BD = torch.tanh(vector_BD)
            return nn.functional.normalize(vector_BD, dim=-1) if self.normalize else vector_BD

    def collator(self, side: Side, chunks: int = 1, chunk_tokens: int | None = None) -> Collator:
        """The collator for texts of one side: adds that side's prompt, truncates to ``max_length``."""
        from harness.data.collator import Collator

        return Collator(
            self.tokenizer, prompt=self.prompts[side], max_length=self.max_length, chunks=chunks,
            chunk_tokens=chunk_tokens, unpadded=self.unpadded,
        )  # fmt: skip

    def encode(
        self,
        texts: Sequence[str],
        *,
        side: Side,
        batch_tokens: int | None = None,
        bf16: bool = False,
        what: str | None = None,
        shared: bool = False,
        workers: int | None = None,
    ) -> np.ndarray:
        """Encode texts in evaluation mode, in batches of at most ``batch_tokens`` tokens, padding included.

        Args:
            texts: N texts without prompts.
            side: whose prompt is put before them.
            batch_tokens: bounds memory; a longer text is a batch of its own. None: as many as the device likes, 1,024
                on a CPU (more leave its caches) and 16,384 on a GPU.
            bf16: run the backbone under bfloat16 autocast.
            what: title of a progress bar; None shows none.
            shared: all processes were given the same texts and share the work. Each runs as many batches as the
                others, for a sharded model's forward needs them all.
            workers: processes that tokenise beside the computing where there are many texts; None: as many as are
                sensible, on a CPU none.

        Returns:
            vector_ND, float32, in the order of ``texts``, in every process.
        """
        share = (rank(), world_size()) if shared else (0, 1)
        bulk = BulkEncoder(self, side, batch_tokens=batch_tokens, bf16=bf16, workers=workers, share=share)
        windows = (texts[start : start + _WINDOW] for start in range(0, len(texts), _WINDOW))
        vector_ND, done = np.zeros((len(texts), self.dimension), dtype=np.float32), 0
        with ExitStack() as ending:
            bar = ending.enter_context(progress(what=what, total=len(texts), unit="text")) if what else None
            for vector_WD in ending.enter_context(closing(bulk.windows(windows, bar.update if bar else None))):
                vector_ND[done : done + len(vector_WD)] = vector_WD
                done += len(vector_WD)
        return sum_over_processes(vector_ND) if shared else vector_ND
