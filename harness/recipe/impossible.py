"""Combinations of settings that can't work, each with its reason and what to do."""

from __future__ import annotations

from harness.recipe.data_settings import DataSettings
from harness.recipe.impossible_evaluation import impossible_evaluation
from harness.recipe.settings import LossSettings, MineSettings, Recipe, TrainingSettings


def impossible(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Combinations that can't work, as (key, reason, what to do)."""
    found = [*_impossible_data(recipe.data), *_impossible_models(recipe), *_impossible_loss(recipe)]
    found += [*_impossible_stages(recipe), *_impossible_streams(recipe), *_impossible_targets(recipe)]
    found += impossible_evaluation(recipe)
    for name, mine in (("mine.base", recipe.mine.base), ("mine.refine", recipe.mine.refine)):
        found += _impossible_mining(name, mine) if mine else []
    if recipe.student.dimension is not None:
        found.append(
            ("student.dimension", "the student takes the teacher's dimension", "set teacher.dimension, or remove it")
        )
    lists = {
        "evaluate.metrics": recipe.evaluate.metrics, "evaluate.slices": recipe.evaluate.slices,
        "data.languages": recipe.data.languages, "align.texts": recipe.align and recipe.align.texts,
        "align.streams": recipe.align and recipe.align.streams, "teacher.streams": recipe.teacher.streams,
        "student.layers": recipe.student.layers, "evaluate.systems": recipe.evaluate.systems,
        "evaluate.sets": recipe.evaluate.sets, "bench.systems": recipe.bench and recipe.bench.systems,
        "export.onnx": recipe.export and recipe.export.onnx, "export.index": recipe.export and recipe.export.index,
        "bench.engines": recipe.bench and recipe.bench.engines,
        "bench.ann.indexes": recipe.bench and recipe.bench.ann and recipe.bench.ann.indexes,
    }  # fmt: skip
    for key, values in lists.items():
        if isinstance(values, list) and len(set(values)) < len(values):
            found.append((key, "one of them stands twice", "name each once"))
    return found


def impossible_with(
    strategy: str, *, cached: bool, learned_temperature: bool, adapters: bool = False
) -> list[tuple[str, str]]:
    """What a training can't do under accelerate's ``distributed_type``, as (reason, what to do)."""
    found = []
    if cached and strategy == "DEEPSPEED":
        found.append(
            (
                "cached gradients go backward once for every chunk, and ZeRO 2 and 3 reduce all gradients each time",
                "take recipes/accelerate/fsdp2.yaml or ddp.yaml, or set training.cached: false",
            )
        )
    if learned_temperature and strategy in ("FSDP", "DEEPSPEED"):
        found.append(
            (
                "a learned temperature is used outside the model's forward pass, where a parameter that is spread over "
                "processes has no value",
                "take recipes/accelerate/ddp.yaml, or set teacher.loss.learned_temperature: false",
            )
        )
    if adapters and strategy == "DEEPSPEED":
        found.append(
            (
                "adapters in fp32 over weights that rest, in bf16 perhaps, have not been tried with ZeRO 2 and 3",
                "take recipes/accelerate/fsdp2.yaml or ddp.yaml, or remove teacher.lora",
            )
        )
    return found


def _impossible_loss(recipe: Recipe) -> list[tuple[str, str, str]]:
    teacher, found = recipe.teacher, []
    loss, key = teacher.loss, "teacher.loss"
    if loss.to_scores:
        unused = {
            "same_tower": loss.with_towers, "mask_margin": loss.masks_above is not None, "margin": loss.margin > 0,
            "learned_temperature": loss.learned_temperature and loss.kind == "margin_mse",
        }  # fmt: skip
        found += [(f"{key}.{name}", f"{loss.kind} has none", "remove it") for name, is_set in unused.items() if is_set]
        if recipe.data.source == "emoji":
            found.append((f"{key}.kind", f"{loss.kind} learns given scores, and emoji has none", "choose another loss"))
        if recipe.mine.base and teacher.hard_negatives:
            found.append((f"{key}.kind", f"{loss.kind} learns given scores, and mined negatives have none",
                          "take mine.base out, or choose another loss"))  # fmt: skip
        if not teacher.hard_negatives and loss.positives == 1:
            found.append((f"{key}.kind", f"{loss.kind} compares a query's documents, and a batch has one of each query",
                          "set teacher.hard_negatives, or teacher.loss.positives, above"))  # fmt: skip
    if loss.score_temperature != 1 and not loss.to_scores:
        found.append((f"{key}.score_temperature", f"{loss.kind} takes no given scores", "remove it"))
    if loss.matryoshka_weights is not None and len(loss.matryoshka_weights) != len(loss.matryoshka):
        found.append((f"{key}.matryoshka_weights", "not one for every dimension", f"give as many as {key}.matryoshka"))
    if len(set(loss.matryoshka)) < len(loss.matryoshka):
        found.append((f"{key}.matryoshka", "one of them stands twice", "name each once"))
    if loss.matryoshka and teacher.dimension and max(loss.matryoshka) > teacher.dimension:
        found.append((f"{key}.matryoshka", "more dimensions than teacher.dimension leaves", "name smaller ones"))
    if loss.learned_temperature and not 0.01 <= teacher.temperature <= 1:
        found.append(("teacher.temperature", "a learned temperature stays between 0.01 and 1", "start between them"))
    if not teacher.train and loss != LossSettings():
        found.append((key, "the teacher is not trained", "remove it, or set teacher.train: true"))
    return found


def _impossible_data(data: DataSettings) -> list[tuple[str, str, str]]:
    found = []
    if data.source in ("beir", "pairs") and not data.path:
        found.append(("data.path", f"data.source {data.source!r} needs a path", "add data.path: --set data.path=DIR"))
    if data.source == "beir" and isinstance(data.path, list):
        found.append(("data.path", "a BEIR data set is one folder, not a list", "give one path"))
    if data.source == "huggingface" and not data.dataset:
        found.append(("data.dataset", "data.source 'huggingface' needs a data set id", "add data.dataset"))
    if data.source in ("pairs", "huggingface") and not data.dev_path and data.hold_out == 0:
        found.append(("data.hold_out", "nothing is left to evaluate on", "set data.hold_out above 0, or data.dev_path"))
    if data.source in ("pairs", "huggingface") and not data.dev_path and data.hold_out == 1:
        found.append(("data.hold_out", "nothing is left to train on", "set data.hold_out below 1, or data.dev_path"))
    return found


def _impossible_models(recipe: Recipe) -> list[tuple[str, str, str]]:
    return [*_impossible_training(recipe), *_impossible_given(recipe), *_impossible_student(recipe)]


def _impossible_training(recipe: Recipe) -> list[tuple[str, str, str]]:
    """What the teacher's training lacks, or is told though there is none."""
    teacher, found = recipe.teacher, []
    if teacher.train and teacher.training is None:
        found.append(("teacher.training", "a teacher that is trained needs a training section",
                      "add teacher.training, or set teacher.train: false"))  # fmt: skip
    if teacher.lora and not teacher.train:
        found.append(("teacher.lora", "adapters are to be trained, but the teacher is not", "remove it"))
    if teacher.model is None and teacher.train:
        found.append(("teacher.train", "there is no model to train", "set teacher.train: false"))
    if teacher.hard_negatives and not recipe.mine.base and recipe.data.source == "emoji":
        found.append(("teacher.hard_negatives",
                      "there are no negatives: emoji carries none and mine.base is absent",
                      "add mine.base, or set teacher.hard_negatives: 0"))  # fmt: skip
    if recipe.mine.base and not teacher.train:
        found.append(("mine.base", "negatives for the teacher's training, but the teacher is not trained", "remove it"))
    return found


def _impossible_given(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Given vectors that do not fit the rest."""
    teacher, found = recipe.teacher, []
    if teacher.train and recipe.documents.vectors:
        found.append(("documents.vectors",
                      "existing document vectors fix the teacher: training would move its space",
                      "set teacher.train: false"))  # fmt: skip
    if teacher.model is None and not (recipe.documents.vectors and teacher.query_vectors):
        found.append(("teacher.model",
                      "without teacher weights, both its document and its query vectors must be given",
                      "name teacher.model, or give documents.vectors and teacher.query_vectors"))  # fmt: skip
    if teacher.query_vectors and recipe.align and not set(recipe.align.texts) <= {"queries"}:
        found.append(("align.texts", "given query vectors hold queries only", "set align.texts: [queries]"))
    if teacher.query_vectors and teacher.train:
        found.append(("teacher.query_vectors",
                      "query vectors of a teacher that is yet to be trained can't be given",
                      "set teacher.train: false"))  # fmt: skip
    return found


def _impossible_student(recipe: Recipe) -> list[tuple[str, str, str]]:
    student, found = recipe.student, []
    if student.model == "teacher" and recipe.teacher.model is None:
        found.append(("student.model", "the student is to be cut from the teacher, which has no weights here",
                      "name student.model"))  # fmt: skip
    if isinstance(student.layers, list) and sorted(student.layers) != student.layers:
        found.append(("student.layers", "layers keep their order", "list them in rising order"))
    if student.prompts.document is not None:
        found.append(("student.prompts.document", "the student never sees a document", "remove it"))
    return found


def _impossible_streams(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Streams that are named and not there, there and not named, or without a column that is needed."""
    streams, teacher, found = recipe.data.streams, recipe.teacher, []
    used = {"teacher.streams": teacher.streams, "align.streams": recipe.align.streams if recipe.align else []}
    known = ", ".join(streams) or "none: add data.streams"
    found += [
        (key, f"there is no stream {name!r} in data.streams", f"name one of these: {known}")
        for key, names in used.items() for name in names if name not in streams
    ]  # fmt: skip
    named = {name for names in used.values() for name in names}
    found += [(f"data.streams.{name}", "nothing reads this stream", "name it in align.streams, or remove it")
              for name in streams if name not in named]  # fmt: skip
    found += [
        (f"data.streams.{name}.positive", "the teacher trains on pairs, and this stream has queries alone",
         f"name the column of the text that answers, or take {name} out of teacher.streams")
        for name in teacher.streams if name in streams and streams[name].positive is None
    ]  # fmt: skip
    for name, stream in streams.items():
        columns = [c for c in (stream.query, stream.positive, stream.context, stream.language) if c is not None]
        if len(set(columns)) < len(columns):
            found.append((f"data.streams.{name}", "one column has two parts to play", "name each column once"))
        if isinstance(stream.path, list) and len(set(stream.path)) < len(stream.path):
            found.append((f"data.streams.{name}.path", "one of them stands twice", "name each once"))
    found += [
        (f"data.streams.{name}.prompts.document", "only the teacher's training reads a stream's documents",
         "name the stream in teacher.streams, or remove it")
        for name, stream in streams.items() if stream.prompts.document is not None and name not in teacher.streams
    ]  # fmt: skip
    if recipe.data.one_stream_per_batch and not named:
        found.append(("data.one_stream_per_batch", "no stage reads streams", "remove it"))
    if teacher.streams and not teacher.train:
        found.append(("teacher.streams", "the teacher is not trained", "remove it, or set teacher.train: true"))
    elif teacher.streams:
        found += _impossible_pairs(recipe)
    return [*found, *_impossible_context(recipe)]


def _impossible_pairs(recipe: Recipe) -> list[tuple[str, str, str]]:
    """What the teacher's training on streams can't do."""
    teacher, loss = recipe.teacher, recipe.teacher.loss
    alone = "a stream has pairs alone"
    wanted = [
        ("teacher.hard_negatives", teacher.hard_negatives, f"{alone}: there are no hard negatives", "set it to 0"),
        ("mine.base", recipe.mine.base, "its negatives are for the train split, and the teacher trains on streams",
         "remove it"),
        ("teacher.loss.kind", loss.to_scores, f"{loss.kind} learns given scores, and {alone}",
         "choose info_nce or qwen3"),
        ("teacher.loss.positives", loss.positives > 1, f"{alone}: one positive a query", "set it to 1"),
    ]  # fmt: skip
    return [(key, why, f"{remedy}, or take teacher.streams out") for key, is_set, why, remedy in wanted if is_set]


def _impossible_context(recipe: Recipe) -> list[tuple[str, str, str]]:
    template, found = recipe.teacher.context, []
    with_context = [name for name, stream in recipe.data.streams.items() if stream.context is not None]
    if template is None:
        found += [
            (f"data.streams.{name}.context", "teacher.context does not say how the teacher reads it",
             'set teacher.context, e.g. "{query} | {context}", or remove it') for name in with_context
        ]  # fmt: skip
    else:
        if "{query}" not in template or "{context}" not in template:
            found.append(("teacher.context", "a place for the query or for its context is missing",
                          'write e.g. "{query} | {context}"'))  # fmt: skip
        elif set("{}") & set(template.replace("{query}", "").replace("{context}", "")):
            found.append(("teacher.context", "braces that are neither {query} nor {context}",
                          'write e.g. "{query} | {context}"'))  # fmt: skip
        if recipe.teacher.model is None:
            found.append(("teacher.context", "the teacher's query vectors are given, and not to be encoded",
                          "name teacher.model, or remove it"))  # fmt: skip
        if recipe.data.source == "emoji" and not with_context:
            found.append(("teacher.context", "no query of emoji has a context", "remove it, or choose other data"))
    return found


def _impossible_targets(recipe: Recipe) -> list[tuple[str, str, str]]:
    """What the alignment can't be aligned to."""
    align = recipe.align
    found: list[tuple[str, str, str]] = []
    if align is None:
        return found
    if not align.texts and not align.streams:
        found.append(("align.texts", "there is nothing to align on", "name queries, documents, unlabelled or a stream"))
    if align.streams and recipe.teacher.model is None:
        found.append(("align.streams", "a teacher without weights can't encode a stream's queries",
                      "name teacher.model, or take the streams out"))  # fmt: skip
    if align.targets == "online" and (recipe.teacher.model is None or recipe.teacher.query_vectors):
        found.append(("align.targets", "the teacher's query vectors are given, and not to be encoded",
                      "set align.targets: stored, or remove teacher.query_vectors"))  # fmt: skip
    return found


def _impossible_mining(name: str, mine: MineSettings) -> list[tuple[str, str, str]]:
    """Filters that leave nothing whatever the data, or that have no effect."""
    found = []
    if mine.until is not None and mine.until <= mine.skip:
        found.append((f"{name}.until", "the window of ranks is empty", f"set it above {name}.skip"))
    elif mine.until is not None and mine.until > mine.top_k:
        found.append((f"{name}.until", f"only {mine.top_k} hits are looked at", f"raise {name}.top_k, or remove it"))
    if mine.min_score is not None and mine.max_score is not None and mine.min_score > mine.max_score:
        found.append((f"{name}.min_score", "it lies above max_score", f"lower it, or raise {name}.max_score"))
    return found


def _impossible_stages(recipe: Recipe) -> list[tuple[str, str, str]]:
    found = []
    needs = {"student-aligned": recipe.align, "student-refined": recipe.refine}
    wanted = {"evaluate.systems": recipe.evaluate.systems, "evaluate.reference": [recipe.evaluate.reference]}
    if recipe.bench:
        wanted["bench.systems"] = recipe.bench.systems
    if recipe.export:
        wanted["export.system"] = [recipe.export.system]
    for key, systems in wanted.items():
        for system in systems:
            if system in needs and needs[system] is None:
                section = {"student-aligned": "align", "student-refined": "refine"}[system]
                found.append(
                    (
                        key,
                        f"{system} does not exist: the recipe has no {section} section",
                        f"add {section}, or take {system} out of {key}",
                    )
                )
            if system in ("teacher-base", "teacher-more") and not recipe.teacher.train:
                found.append((key, f"{system} does not exist: the teacher is not trained", f"take it out of {key}"))
    if recipe.evaluate.reference not in recipe.evaluate.systems:
        found.append(("evaluate.reference", "the reference is not among evaluate.systems", "add it there"))
    if recipe.refine and not recipe.align:
        found.append(("refine", "refinement starts from the aligned student", "add an align section"))
    if recipe.refine and recipe.refine.mined and not recipe.mine.refine:
        found.append(("refine.mined", "nothing is mined", "add mine.refine, or set refine.mined: 0"))
    if recipe.align and "unlabelled" in recipe.align.texts and not recipe.data.unlabelled:
        found.append(("align.texts", "data.unlabelled names no file", "add data.unlabelled, or take unlabelled out"))
    if recipe.bench and recipe.teacher.model is None and "teacher" in recipe.bench.systems:
        found.append(("bench.systems", "a teacher without weights can't be timed", "take teacher out of bench.systems"))
    for name, stage in {"teacher": recipe.teacher, "align": recipe.align, "refine": recipe.refine}.items():
        found += _impossible_section(f"{name}.training", stage.training) if stage and stage.training else []
    return found


def _impossible_section(key: str, training: TrainingSettings) -> list[tuple[str, str, str]]:
    found = []
    if training.batch_size % training.accumulate:
        found.append((f"{key}.accumulate", "the global batch must split into equal parts",
                      "choose accumulate to divide batch_size"))  # fmt: skip
    if training.chunk_tokens and not training.cached:
        found.append((f"{key}.chunk_tokens",
                      "without cached gradients all chunks of a batch are in memory together, however small",
                      "set cached: true, or use chunks"))  # fmt: skip
    if training.unpadded is True and training.attention in ("eager", "sdpa"):
        found.append((f"{key}.unpadded", f"{training.attention} attention reads a mask over padded texts",
                      "set attention: auto, or unpadded: false"))  # fmt: skip
    if training.attention == "flash_attention_2" and training.precision == "fp32":
        found.append((f"{key}.attention", "flash_attention_2 computes in 16 bits, and precision is fp32",
                      "set precision: bf16, or attention: sdpa"))  # fmt: skip
    return found
