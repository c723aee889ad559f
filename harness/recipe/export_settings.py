"""The sections of what is deployed."""

from __future__ import annotations

from typing import Literal

from harness.recipe.section import Section, Share, added

EngineName = Literal["torch-compile", "cuda-graphs", "onnx", "onnx-fp16", "onnx-int8", "onnx-int8-static"]
OnnxVariant = Literal["fp32", "fp16", "int8", "int8-static"]
IndexFormat = Literal["faiss", "npy", "parquet", "faiss-int8", "faiss-pq"]


class ParitySettings(Section):
    """How near an artefact must come to the student in memory, on real queries over the frozen index, to be deployed.

    ``min_cosine``: of any query's two vectors. ``mean_cosine``, ``overlap``: of each language's queries, on average;
    overlap is the share of common hits among the first ten. ``recovery_loss``: how much less it may find than the
    student finds, as a share of that, where there are judgments. Cosines don't see lengths: ``norm`` is how far the
    length of any vector may be off, ``max_difference`` any one component, both as a share of the length of the
    student's vector. These are for int8; fp32 and fp16 have tighter bounds of their own (``export/parity.py``), and of
    two bounds the tighter one binds.
    """

    min_cosine: Share = 0.99
    mean_cosine: Share = 0.995
    overlap: Share = 0.9
    recovery_loss: Share = 0.01
    norm: Share = added(0.01)
    max_difference: Share = added(1.0)


class ExportSettings(Section):
    """What is deployed: the refined student as a sentence-transformers folder, and beside it what is asked for.

    ``onnx``: the student's whole graph; ``int8`` has its weights quantised, ``int8-static`` activations, too, by
    calibration. ``pair``: teacher and student as one sentence-transformers Router. ``triton``: a Triton model
    repository of the ONNX files. ``index``: the frozen document vectors, handed over; ``faiss-int8`` and ``faiss-pq``
    are smaller and approximate. ``parity``: what every artefact must reach.
    """

    system: Literal["student-refined", "student-aligned"] = "student-refined"
    onnx: list[OnnxVariant] = added([])
    pair: bool = added(False)
    triton: bool = added(False)
    index: list[IndexFormat] = added([])
    parity: ParitySettings = added(ParitySettings())
