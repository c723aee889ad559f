"""The section ``bench.ann``: approximate indexes over the frozen vectors, and the search effort that they cost."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.recipe.section import Count, Positive, Section

AnnKind = Literal["hnsw", "ivf", "ivf-pq"]


class HnswSettings(Section):
    """``neighbours``: of a node in the graph (M); ``ef_construction``: candidates looked at while it is built."""

    neighbours: Annotated[int, Field(ge=2, le=512)] = 32
    ef_construction: Positive = 200


class IvfSettings(Section):
    """``lists``: centroids; null: 4 sqrt(documents), and at most a 39th of them."""

    lists: Positive | None = None


class IvfPqSettings(Section):
    """``parts`` of ``bits`` each make up a compressed vector (null: one part for every 4 dimensions). ``rerank``: the
    first rerank x k hits are scored exactly, for which the index holds the vectors, too; 0: none."""

    lists: Positive | None = None
    parts: Positive | None = None
    bits: Annotated[int, Field(ge=4, le=8)] = 8
    rerank: Count = 10


class AnnSettings(Section):
    """The ANN tax: how much more effort an approximate index needs for the student's queries than for the teacher's.

    ``indexes``: which to build; ``student-ann`` searches the first. ``efforts``: efSearch (hnsw) or nprobe (ivf,
    ivf-pq) to measure, for each index; absent: in steps of the square root of 2. ``k``: hits that are compared.
    ``queries``: how many; ``timed`` of them one at a time. ``effort``: what ``student-ann`` searches with; null: the
    one that was found. ``threads``: that build and search; one builds the same graph every time.
    """

    indexes: Annotated[list[AnnKind], Field(min_length=1)] = ["hnsw"]
    hnsw: HnswSettings = HnswSettings()
    ivf: IvfSettings = IvfSettings()
    ivf_pq: IvfPqSettings = IvfPqSettings()
    efforts: dict[AnnKind, Annotated[list[Positive], Field(min_length=1)]] = {}
    k: Annotated[int, Field(ge=1, le=100)] = 10
    queries: Positive = 1_000
    timed: Positive = 200
    effort: Positive | None = None
    threads: Positive = 1

    def parameters(self, kind: str) -> dict[str, Any]:
        """The parameters of one kind of index."""
        return dict(getattr(self, kind.replace("-", "_")).model_dump())
