"""Which function does which step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def work_of_steps() -> dict[str, Callable[[Any], list[Path]]]:
    """What each step does; imported late, for this is where torch comes in."""
    from harness.pipeline import work_ann as ann
    from harness.pipeline import work_bench as timing
    from harness.pipeline import work_evaluation as evaluation
    from harness.pipeline import work_export as export
    from harness.pipeline import work_outside as outside
    from harness.pipeline import work_pairs as pairs
    from harness.pipeline import work_report as reporting
    from harness.pipeline import work_slices as slicing
    from harness.pipeline import work_streams as streams
    from harness.pipeline import work_training as training
    from harness.pipeline import work_vectors as vectors

    return {
        "data": vectors.do_data,
        "data.slices": slicing.do_slices,
        "embed.base": vectors.do_embed_base,
        "mine.base": vectors.do_mine_base,
        "teacher.streams": pairs.do_teacher_streams,
        "teacher": training.do_teacher,
        "embed": vectors.do_embed,
        "student": training.do_student,
        "embed.streams": streams.do_embed_streams,
        "align": training.do_align,
        "mine.refine": vectors.do_mine_refine,
        "refine": training.do_refine,
        "teacher.more": training.do_teacher_more,
        "embed.more": vectors.do_embed_more,
        "export": export.do_export,
        "export.pair": export.do_pair,
        "export.index": export.do_index,
        "export.onnx": export.do_onnx,
        "embed.outside": outside.do_embed_outside,
        "evaluate": evaluation.do_evaluate,
        "evaluate.outside": outside.do_evaluate_outside,
        "bench.ann": ann.do_ann,
        "bench": timing.do_bench,
        "report": reporting.do_report,
    }


def after_step(name: str, run: Any) -> bool:
    """What follows a step that was recorded as done, in all processes: its evaluation. Whether there was one."""
    from harness.pipeline.work_evaluation import evaluate_ended

    return evaluate_ended(run, name)
