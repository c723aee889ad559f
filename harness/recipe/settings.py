"""The sections of a recipe: every key with its type, range and default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.recipe.data_settings import DataSettings
from harness.recipe.evaluation_settings import BenchSettings, EvaluateSettings, ReportSettings
from harness.recipe.export_settings import ExportSettings
from harness.recipe.section import (
    Count,
    Finite,
    Name,
    NonNegativeFloat,
    Pooling,
    Positive,
    PositiveFloat,
    Prompts,
    Section,
    Share,
    TextKind,
    added,
    beside,
)

# ---------------------------------------------------------------------------------------------------- training


class TrainingSettings(Section):
    """What the trainer core reads; ``batch_size`` is the global batch of one optimiser step.

    A batch is encoded in ``chunks`` of texts of like length. ``cached``: with cached gradients, so that one chunk's
    activations are in memory at a time, for one more forward pass; what is learnt is the same. ``chunk_tokens``: then
    as many chunks as it takes for each to hold at most so many tokens, padding included, in place of ``chunks``.
    ``unpadded``: a chunk's texts stand in one row without padding, each attending to itself alone; ``auto``: on a GPU,
    where the model, the number format and torch allow it (the log says why not).
    """

    steps: Positive
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: PositiveFloat
    warmup_share: Share = 0.1
    decay: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    accumulate: Positive = 1
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    token_table: Literal["trained", "frozen"] = "trained"
    chunks: Positive = 4
    cached: bool = added(False)
    chunk_tokens: Positive | None = added(None)
    gradient_checkpointing: bool = added(False)
    unpadded: bool | Literal["auto"] = added("auto")
    evaluate_every: Count = 0
    checkpoint_every: Count = 0
    keep: Literal["best", "last"] = "best"


# ------------------------------------------------------------------------------------------- teacher, documents


class VectorFiles(Section):
    """Vectors that exist already: ``npy`` with a text file of ids, ``parquet`` (id, vector), ``faiss`` with ids."""

    format: Literal["npy", "parquet", "faiss"]
    path: Name
    ids: str | None = None


class EncoderSettings(Section):
    """Which checkpoint and how it turns a text into a vector; ``null`` keeps what the checkpoint says.

    ``model``: a local folder, a hub id, or ``package:NAME`` for weights carried by an installed Python package.
    """

    model: str | None = None
    sha256: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    prompts: Prompts = Prompts()
    pooling: Pooling | None = None
    max_length: Positive | None = None
    dimension: Positive | None = None


class LoraSettings(Section):
    """Train low-rank adapters (Hu et al. 2022) and nothing else: every weight of the base, its token table too, stays.

    What is added to a linear layer's output is ``alpha / rank * B A dropout(x)``. ``targets`` names the layers by the
    ends of their names; ``auto``: all linear layers of every block, where the architecture is a known one.
    """

    rank: Positive = 16
    alpha: PositiveFloat = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["auto"] | Annotated[list[Name], Field(min_length=1)] = "auto"


class LossSettings(Section):
    """The loss of stage 1; each is explained, with its source, in ``training/losses.py``.

    ``kind``: ``info_nce``; ``qwen3``, which is InfoNCE with ``same_tower: true`` and ``mask_margin: 0.1``; ``kl`` or
    ``margin_mse``, to the scores that the data gives to a query's judged documents. ``null`` is what the kind says.

    ``same_tower``: other queries, and for the positive other documents, are negatives, too. ``mask_margin``: what
    scores higher than the positive by more than this is no negative (cosines differ by 2 at most: 2 masks nothing).
    ``margin``: taken from the positive's score. ``learned_temperature``: ``teacher.temperature`` is where it starts;
    it stays between 0.01 and 1, is in logs and checkpoints, and not in the model. ``matryoshka``: dimensions that the
    loss is summed over, with ``matryoshka_weights`` (null: 1 each). ``positives``: how many of a query's positives
    stand in a batch; above 1, each is wanted in proportion to its grade. ``score_temperature`` divides given scores.
    """

    kind: Literal["info_nce", "qwen3", "kl", "margin_mse"] = "info_nce"
    same_tower: bool | None = None
    mask_margin: NonNegativeFloat | None = None
    margin: NonNegativeFloat = 0.0
    learned_temperature: bool = False
    matryoshka: list[Positive] = []
    matryoshka_weights: list[PositiveFloat] | None = None
    positives: Positive = 1
    score_temperature: PositiveFloat = 1.0

    @property
    def with_towers(self) -> bool:
        """``same_tower``, or what the kind says."""
        return self.kind == "qwen3" if self.same_tower is None else self.same_tower

    @property
    def masks_above(self) -> float | None:
        """``mask_margin``, or what the kind says."""
        return 0.1 if self.mask_margin is None and self.kind == "qwen3" else self.mask_margin

    @property
    def to_scores(self) -> bool:
        """Whether it learns given scores."""
        return self.kind in ("kl", "margin_mse")


class TeacherSettings(EncoderSettings):
    """Stage 1. ``dimension`` truncates to a Matryoshka dimension; ``temperature`` is that of its contrastive loss.

    ``lora``: train adapters instead of all weights; they are merged into the weights when the training has ended.

    ``select_documents``: both towers move while it trains, so it is judged by encoding documents anew: those that
    answer ``select`` queries and others at random, up to so many. These scores are not those over the whole index.

    ``streams``: train on the pairs of these instead of the train split. ``context``: what its query side reads where a
    query has a context, with ``{query}`` and ``{context}`` in it; the student never sees a context.
    """

    train: bool = True
    temperature: PositiveFloat = 0.05
    hard_negatives: Count = 0
    select_documents: Positive = 20_000
    training: TrainingSettings | None = None
    lora: LoraSettings | None = added(None)
    loss: LossSettings = added(LossSettings())
    query_vectors: VectorFiles | None = None
    streams: list[Name] = added([])
    context: Name | None = added(None)


class DocumentSettings(Section):
    """Bring your own document vectors; ``sample`` of them are re-encoded by the teacher and must match."""

    vectors: VectorFiles | None = None
    sample: Positive = 64
    min_cosine: Annotated[float, Field(gt=0, le=1)] = 0.999


class EmbedSettings(Section):
    """How vectors are written: storage type, rows a shard, tokens a batch (null: 1,024 on a CPU, 16,384 on a GPU).

    ``dtype``: float16 and bfloat16 halve, int8 (with a scale for each vector) quarters what float32 takes.
    ``workers``: processes that tokenise the next texts while the device computes; null: none on a CPU, whose cores are
    the device, else up to 4.
    ``stream_dtype``: of streams' query vectors, which are as many as there are queries.
    ``precision``: what the encoder computes in; on a GPU bf16 is many times faster, and vectors differ by some 0.001.
    ``unpadded``: a batch's texts stand in one row without padding; ``auto``: on a GPU, in bf16.
    """

    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    stream_dtype: Literal["float32", "float16", "bfloat16", "int8"] = added("float16")
    shard_rows: Positive = 100_000
    batch_tokens: Positive | None = None
    workers: Count | None = beside(None)
    precision: Literal["fp32", "bf16"] = added("fp32")
    unpadded: bool | Literal["auto"] = added("auto")


class ModelScores(Section):
    """A relevance model's scores of pairs, Parquet or JSONL of query_id, document_id, score.

    What scores above ``max_score`` is no negative. ``unknown``: what becomes of pairs that the file does not have.
    """

    path: Name
    max_score: Finite
    unknown: Literal["keep", "drop"] = "keep"


class MineSettings(Section):
    """Negatives: of the ``top_k`` hits, known positives among them, those that the filters leave; ``keep`` are kept.

    What is known to be relevant goes first, so that fewer than ``top_k`` are left to the other filters. Ranks count
    from 0 among what is not known to be relevant: ``skip`` leaves out the first ones as likely false negatives,
    ``until`` those from there on. ``min_score``, ``max_score``: bounds of a negative's score. A negative scores below
    the positive's score - ``margin``, and below ``share`` of it (NV-Retriever, arXiv 2407.15831: TopK-MarginPos and
    TopK-PercPos); of several positives ``positive`` says whose score: the ``lowest``, so that nothing stands near any
    of them, or the ``best``. ``model_scores``: drop what a relevance model holds for relevant.
    ``pick``: the ``top`` of what is left, or a ``random`` sample drawn with ``seed``. ``part_queries``: queries written
    at once, the unit of resuming and of sharing among processes (null: by their number).
    """

    top_k: Positive = 50
    skip: Count = 0
    keep: Positive = 16
    until: Positive | None = added(None)
    min_score: Finite | None = added(None)
    max_score: Finite | None = added(None)
    margin: NonNegativeFloat | None = added(None)
    share: Annotated[float, Field(gt=0, le=1)] | None = added(None)
    positive: Literal["lowest", "best"] = added("lowest")
    model_scores: ModelScores | None = added(None)
    pick: Literal["top", "random"] = added("top")
    seed: Count = added(0)
    part_queries: Positive | None = added(None)


class MineSections(Section):
    """``base``: with the untrained teacher, for its training; ``refine``: with the teacher, for the student."""

    base: MineSettings | None = None
    refine: MineSettings | None = None


# ----------------------------------------------------------------------------------------------------- student


class LayerRule(Section):
    """Keep ``count`` layers: the ``first``, the ``last``, or the first one and the last ones (``middle-skip``)."""

    rule: Literal["first", "last", "middle-skip"]
    count: Positive


class FeedForwardCut(Section):
    """Keep ``width`` hidden units of every layer's feed-forward network: those with the highest mean activation over
    so many ``texts`` (training queries; where there are none, documents and unlabelled texts), after layers are cut."""

    width: Positive
    texts: Positive = 2_048


class StudentSettings(EncoderSettings):
    """``model``: any encoder, or ``teacher``. ``layers``: from 1, or a rule. ``feed_forward``: how wide its layers'
    networks are to be. ``ridge``: the bridge's penalty."""

    model: str = "teacher"
    layers: Annotated[list[Positive], Field(min_length=1)] | LayerRule | None = None
    feed_forward: FeedForwardCut | None = added(None)
    ridge: NonNegativeFloat = 1e-3


class AlignSettings(Section):
    """Stage 2: L2 to the teacher's query vectors over the named kinds of text and the named streams.

    ``targets``: ``stored``, encoded once and looked up; ``online``, the teacher is loaded beside the student and
    encodes each batch's texts, so that nothing is stored.
    """

    texts: list[TextKind] = ["queries", "documents"]
    streams: list[Name] = added([])
    targets: Literal["stored", "online"] = added("stored")
    training: TrainingSettings


class RefineSettings(Section):
    """Stage 3: contrastive against frozen document vectors.

    ``candidates``: ``all`` documents, ``sampled`` (positives in the batch + mined + ``sampled`` random ones), or
    ``auto`` (all while scores of a batch over all documents stay below ``all_limit``). ``anchor`` weighs the L2 to the
    teacher's query vector.
    """

    temperature: PositiveFloat = 0.05
    anchor: NonNegativeFloat = 1.0
    candidates: Literal["auto", "all", "sampled"] = "auto"
    all_limit: Positive = 200_000
    sampled: Count = 1024
    mined: Count = 0
    training: TrainingSettings


class LaunchSettings(Section):
    """Where steps run; left out of every step's key.

    ``processes``: of the steps that share their work (training, embed, mine, evaluate), one number for all or one for
    each step or verb named; ``auto``: the visible GPUs, on a CPU one, or what the accelerate file says.
    ``accelerate``: step or verb -> accelerate configuration file.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: Positive | Literal["auto"] | dict[Name, Positive | Literal["auto"]] = "auto"
    threads: Positive | None = None
    accelerate: dict[str, str] = {}


class TrackingSettings(Section):
    """Where metrics go besides ``logs/*.jsonl``."""

    trackers: list[Literal["wandb", "tensorboard"]] = []
    project: Name = "harness"


class Recipe(Section):
    """A complete run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Count = 0
    data: DataSettings
    teacher: TeacherSettings
    documents: DocumentSettings = DocumentSettings()
    mine: MineSections = MineSections()
    embed: EmbedSettings = EmbedSettings()
    student: StudentSettings = StudentSettings()
    align: AlignSettings | None = None
    refine: RefineSettings | None = None
    export: ExportSettings | None = None
    evaluate: EvaluateSettings = EvaluateSettings()
    bench: BenchSettings | None = BenchSettings()
    report: ReportSettings = ReportSettings()
    launch: LaunchSettings = LaunchSettings()
    tracking: TrackingSettings = TrackingSettings()
