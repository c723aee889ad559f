"""The estimates of `check` against what small models really take, and parameter counts of large ones.

Measured: bytes that autograd keeps (``saved_tensors_hooks``), bytes of gradients and moments after a step, and files
that a run writes. Axes: B texts, L tokens.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from builders.measured import LiveBytes
from builders.tiny_models import write_tiny_bert, write_tiny_qwen3
from builders.tiny_run import tiny_tree, write_recipe, write_tiny_inputs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from harness.encoders.chain import describe_folder
from harness.encoders.encoder import Encoder
from harness.encoders.folder import open_encoder, save_encoder
from harness.encoders.lora import add_adapter
from harness.encoders.shapes import shapes_of_config
from harness.encoders.sources import describe_model, resolve_model
from harness.encoders.targets import adapter_size
from harness.pipeline import compute
from harness.pipeline import needs as needs_module
from harness.pipeline.activations import activation_bytes
from harness.pipeline.check import check_recipe
from harness.pipeline.compute import forward_operations, training_operations
from harness.pipeline.needs import needs
from harness.pipeline.sizes import Counts, Model, describe, models_of
from harness.recipe import EncoderSettings, LoraSettings, TrainingSettings, load_recipe
from harness.runtime.errors import InputError
from harness.training import fit, stages
from harness.training.objectives import Alignment

TEXTS = ["a cat and a dog in the house by the sea", "the sun and the moon over a green hill"]
WRITE: dict[str, Callable[..., Path]] = {"bert": write_tiny_bert, "qwen3": write_tiny_qwen3}
LORA = LoraSettings(rank=8)
WITHIN = 0.05  # of what is measured


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """Models whose sizes stand to each other as in real ones, stored in fp32 and in bf16."""
    root, found = tmp_path_factory.mktemp("estimates"), {}
    for name, write in WRITE.items():
        found[name, False] = write(root / name, texts=TEXTS, hidden=128, layers=4, heads=4, vocab=300)
        encoder = open_encoder(found[name, False])
        encoder.backbone.to(torch.bfloat16)
        save_encoder(encoder, root / f"{name}-bf16")
        found[name, True] = root / f"{name}-bf16"
    return found


def _described(folder: Path, lora: bool) -> Model:
    model = describe(EncoderSettings(model=str(folder)))
    return replace(model, adapters=adapter_size(folder, LORA), rank=LORA.rank) if lora else model


def _open(folder: Path, *, eager: bool, lora: bool, bf16: bool) -> Encoder:
    resting = torch.bfloat16 if lora and bf16 and folder.name.endswith("bf16") else torch.float32
    encoder = open_encoder(folder, dtype=resting, attention="eager" if eager else "sdpa")
    if lora:
        encoder.requires_grad_(False)
        add_adapter(encoder, LORA, seed=0)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return encoder.train()


def _chunks(lengths: dict[int, int]) -> list[dict[str, Tensor]]:
    """A padded chunk for every length: tokens -> texts."""
    generator, chunks = torch.Generator().manual_seed(0), []
    for tokens, texts in lengths.items():
        token_BL = torch.randint(5, 20, (texts, tokens), generator=generator)
        mask_BL = torch.ones_like(token_BL)
        mask_BL[0, : tokens // 2] = 0
        chunks.append({"input_ids": token_BL, "attention_mask": mask_BL})
    return chunks


def _kept(encoder: Encoder, lengths: dict[int, int], *, bf16: bool) -> int:
    """Bytes of the storages that autograd keeps of one forward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held: an address is not given out twice
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), hooks:
        vector_BD = encoder(chunks=_chunks(lengths))
    assert vector_BD.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("eager", [False, True], ids=["sdpa", "eager"])
@pytest.mark.parametrize(("bf16", "stored"), [(False, False), (True, False), (True, True)],
                         ids=["fp32", "bf16", "bf16-stored"])  # fmt: skip
@pytest.mark.parametrize("name", WRITE)
def test_activations_are_those_that_autograd_keeps(
    name: str, bf16: bool, stored: bool, eager: bool, lora: bool, folders: dict[tuple[str, bool], Path]
) -> None:
    folder, lengths = folders[name, stored], {48: 8, 24: 16}
    measured = _kept(_open(folder, eager=eager, lora=lora, bf16=bf16), lengths, bf16=bf16)
    model, parts = _described(folder, lora), [(texts, tokens) for tokens, texts in lengths.items()]
    estimated = activation_bytes(model, parts, bf16=bf16, eager=eager)
    assert estimated == pytest.approx(measured, rel=WITHIN), estimated / measured


def _step(encoder: Encoder, chunks: list[dict[str, Tensor]], *, bf16: bool, cached: bool) -> int:
    """The most bytes that live at once in one step of the alignment, beside weights, moments and what goes in."""
    texts = sum(len(chunk["input_ids"]) for chunk in chunks)
    batch = {"chunks": chunks, "restore": torch.arange(texts), "weight_Q": torch.ones(texts),
             "teacher_QD": torch.nn.functional.normalize(torch.ones(texts, encoder.dimension), dim=-1)}  # fmt: skip
    with LiveBytes() as bytes_, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        Alignment(cached=cached).step(encoder, batch, lambda loss, sync=True: loss.backward())
    return bytes_.peak


@pytest.mark.parametrize(("bf16", "lora"), [(False, False), (True, False), (True, True)],
                         ids=["fp32", "bf16", "bf16-lora"])  # fmt: skip
@pytest.mark.parametrize("way", ["direct", "cached", "again", "cached-again"])
@pytest.mark.parametrize("name", WRITE)
def test_a_steps_peak_is_activations_and_gradients(
    name: str, way: str, bf16: bool, lora: bool, folders: dict[tuple[str, bool], Path]
) -> None:
    folder, lengths = folders[name, True], {48: 8, 47: 8, 46: 8, 45: 8}
    encoder = _open(folder, eager=False, lora=lora, bf16=bf16)
    cached, again = way.startswith("cached"), way.endswith("again")
    stages._set_checkpointing(encoder, again)
    measured = _step(encoder, _chunks(lengths), bf16=bf16, cached=cached)
    model = _described(folder, lora)
    parts = [(texts, tokens) for tokens, texts in lengths.items()][: 1 if cached else 4]
    trained = model.adapters or model.parameters
    estimated = activation_bytes(model, parts, bf16=bf16, again=again * len(parts)) + 4 * trained
    assert estimated == pytest.approx(measured, rel=0.25), estimated / measured


# ------------------------------------------------------------------------------------------------- weights, moments


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", WRITE)
def test_weights_gradients_and_moments_are_as_many_bytes(
    name: str, lora: bool, folders: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    """Of an encoder and an optimiser as the trainer makes them, after one step in bf16."""
    folder = folders[name, True]
    adapters = ["teacher.lora.rank=8"] if lora else []
    recipe = load_recipe(
        write_recipe(tmp_path, tiny_tree(tmp_path)),
        [f"teacher.model={folder}", "teacher.training.precision=bf16", "teacher.training.keep=last", *adapters],
    )
    need = needs(recipe, models_of(recipe), Counts(queries=8, tokens={"query": 8, "document": 8}))["teacher"]
    encoder = _open(folder, eager=True, lora=lora, bf16=True)
    optimizer = fit._optimizer(encoder, recipe.teacher.training)
    with torch.autocast("cpu", torch.bfloat16):
        encoder(chunks=_chunks({8: 4})).sum().backward()
    optimizer.step()
    weights, gradients, moments = (
        sum(tensor.nbytes for tensor in tensors if tensor is not None and tensor.numel() > 1)
        for tensors in (
            encoder.parameters(), (parameter.grad for parameter in encoder.parameters()),
            (value for state in optimizer.state.values() for value in state.values()),
        )
    )  # fmt: skip
    assert need.memory["weights"] == pytest.approx(weights, rel=0.01)
    assert need.memory["gradients and moments"] == pytest.approx(gradients + moments, rel=0.01)
    assert need.disk["checkpoints"] == pytest.approx(gradients + moments, rel=0.01), "trained weights, two moments"


# ------------------------------------------------------------------------------------------------------- parameters

QWEN3 = {  # config.json of Qwen/Qwen3-Embedding-*: what decides on the size
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
             "vocab_size": 151_669},
    "4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
           "vocab_size": 151_665},
    "8b": {"hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36, "num_attention_heads": 32,
           "vocab_size": 151_665},
}  # fmt: skip
COMMON = {"model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128, "dtype": "bfloat16",
          "max_position_embeddings": 32_768}  # fmt: skip
PARAMETERS = {"0.6b": 595_776_512, "4b": 4_021_774_336, "8b": 7_567_295_488}


@pytest.mark.parametrize("size", QWEN3)
def test_parameters_of_full_size_models_are_told_by_their_configs(size: str) -> None:
    config = QWEN3[size] | COMMON
    shapes = shapes_of_config(config, size)
    with torch.device("meta"):
        stock = AutoModel.from_config(AutoConfig.for_model(**config)).state_dict()
    assert shapes == {name: list(tensor.shape) for name, tensor in stock.items()}
    assert sum(map(math.prod, shapes.values())) == PARAMETERS[size]


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "llama", "mistral", "qwen2"])
def test_shapes_of_other_architectures(kind: str) -> None:
    config = {"model_type": kind, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
              "num_attention_heads": 4, "vocab_size": 50, "max_position_embeddings": 30,
              "type_vocab_size": 3}  # fmt: skip
    if kind not in ("bert", "xlm-roberta"):
        config |= {"num_key_value_heads": 2}
    with torch.device("meta"):
        stock = AutoModel.from_config(AutoConfig.for_model(**config)).state_dict()
    expected = {name: list(tensor.shape) for name, tensor in stock.items() if not name.startswith("pooler")}
    assert shapes_of_config(config, kind) == expected


def test_an_unknown_architecture_and_a_lacking_size_are_named() -> None:
    with pytest.raises(InputError, match=r"not told by its config[\s\S]*modernbert"):
        shapes_of_config({"model_type": "modernbert"}, "m")
    with pytest.raises(InputError, match="no intermediate_size"):
        shapes_of_config({"model_type": "qwen3", "hidden_size": 8}, "m")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Serve folders as if they were on the hub; returns the patterns of every download."""
    asked: list[list[str]] = []
    served: dict[str, Path] = {}

    def download(model: str, *, revision: Any = None, allow_patterns: list[str], local_files_only: bool = False) -> str:
        here = tmp_path / "cache" / model
        if local_files_only and not here.is_dir():
            raise FileNotFoundError(model)
        if not local_files_only:
            asked.append(allow_patterns)
            for path in (path for path in served[model].rglob("*") if path.is_file()):
                if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                    target = here / path.relative_to(served[model])
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, target)
        return str(here)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)

    def serve(**folders: Path) -> list[list[str]]:
        served.update({f"team/{name}": folder for name, folder in folders.items()})
        return asked

    return serve


@pytest.mark.parametrize("name", WRITE)
def test_a_model_that_is_not_here_is_told_by_its_config(
    name: str, hub: Callable[..., list[list[str]]], folders: dict[tuple[str, bool], Path]
) -> None:
    asked = hub(model=folders[name, True])
    folder, told = describe_model("team/model")
    assert told == describe_folder(folders[name, True]) and told["bf16"]
    assert adapter_size(folder, LORA) == adapter_size(folders[name, True], LORA)
    assert asked and not any("safetensors" in pattern for patterns in asked for pattern in patterns)
    resolve_model("team/model")
    assert (folder / "model.safetensors").is_file(), "the run gets the rest"
    asked.clear()
    assert describe_model("team/model") == (folder, told) and not asked, "all is here now"


def test_a_model_whose_config_does_not_tell_is_got_in_whole(
    hub: Callable[..., list[list[str]]], folders: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    strange = shutil.copytree(folders["bert", False], tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of"}))
    asked = hub(model=strange)
    assert describe_model("team/model")[1]["parameters"] == describe_folder(strange)["parameters"]
    assert any("safetensors" in pattern for pattern in asked[-1])


def test_check_says_what_a_hub_model_takes_before_it_is_here(
    hub: Callable[..., list[list[str]]], tmp_path: Path
) -> None:
    asked = hub(model=Path(write_tiny_inputs(tmp_path)["model"]))
    recipe = load_recipe(write_recipe(tmp_path, tiny_tree(tmp_path)), ["teacher.model=team/model"])
    models = models_of(recipe)
    assert models["teacher"].parameters == describe_folder(tmp_path / "model")["parameters"]
    check_recipe(recipe, output=tmp_path / "out")
    assert not any("safetensors" in pattern for patterns in asked for pattern in patterns)


# ------------------------------------------------------------------------------------------------------- operations

BIG = Model(parameters=10_000, body=8_000, layers=2, hidden=10, heads=2, dimension=10)


def test_operations_of_a_training_step_by_hand() -> None:
    """Of 3 texts of 5 tokens: 15 tokens, each with 8,000 weights and attention of 4 x 2 layers x 5 tokens x 10."""
    settings = TrainingSettings(steps=1, batch_size=2, learning_rate=1.0)
    attention = 4 * 2 * 5 * 10
    forward = 2 * 8_000 + attention
    assert forward_operations(BIG, 3, 5) == 15 * forward

    def found(model: Model = BIG, **changes: Any) -> float:
        return training_operations(model, settings.model_copy(update=changes), 3, 5) / 15

    assert found() == 6 * 8_000 + 3 * attention
    assert found(cached=True) == found(gradient_checkpointing=True) == found() + forward
    assert found(cached=True, gradient_checkpointing=True) == found() + 2 * forward
    adapted = replace(BIG, adapters=100)
    assert found(adapted) == 4 * 8_000 + 6 * 100 + 3 * attention, "the base has no gradient"


def test_measured_operations_are_those_counted(folders: dict[tuple[str, bool], Path]) -> None:
    """torch counts matrix products and attention as they run."""
    for name in WRITE:
        for lora in (False, True):
            for again in (False, True):
                encoder = _open(folders[name, False], eager=True, lora=lora, bf16=False)
                stages._set_checkpointing(encoder, again)
                with FlopCounterMode(display=False) as counter:
                    encoder(chunks=_chunks({24: 16})).sum().backward()
                settings = TrainingSettings(
                    steps=1, batch_size=2, learning_rate=1.0, gradient_checkpointing=again
                )  # fmt: skip
                estimated = training_operations(_described(folders[name, False], lora), settings, 16, 24)
                assert estimated == pytest.approx(counter.get_total_flops(), rel=0.1), (name, lora, again)


def test_gpu_hours_name_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(write_recipe(tmp_path, tiny_tree(tmp_path)))
    assert compute.gpu_of(recipe) == compute.Gpu("H100", 989e12, 67e12, here=False)
    monkeypatch.setattr(compute, "gpu_name", lambda launch: "NVIDIA A100-SXM4-80GB")
    assert compute.gpu_of(recipe) == compute.Gpu("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12, here=True)
    assert compute.gpu_of(recipe).hours(3600 * 312e12 * compute.UTILISATION) == pytest.approx(1)
    assert compute.gpu_of(recipe).hours(3600 * 19.5e12 * compute.UTILISATION, fp32=True) == pytest.approx(1)
    monkeypatch.setattr(compute, "gpu_name", lambda launch: "NVIDIA Unheard 9000")
    assert not compute.gpu_of(recipe).here


def test_steps_in_fp32_take_the_hours_of_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tiny_tree(tmp_path)
    tree["evaluate"]["systems"] = ["teacher", "teacher-base", "teacher-more", "student-refined"]
    bf16 = ["embed.precision=bf16", *(f"{name}.training.precision=bf16" for name in ("teacher", "align", "refine"))]

    def found(*changes: str) -> tuple[dict[str, float], str | None]:
        recipe = load_recipe(write_recipe(tmp_path, tree), [*bf16, *changes])
        work = dict.fromkeys(("embed.base", "embed", "teacher", "teacher.more", "align", "refine"), 1e18)
        return compute.gpu_hours(recipe, work), compute.fp32_advice(recipe, work)

    fast, advice = found()
    assert list(fast.values()) == pytest.approx([1e18 / (0.4 * 989e12) / 3600] * 6) and advice is None
    for change, slow in (("embed.precision=fp32", {"embed.base", "embed"}),
                         ("teacher.training.precision=fp32", {"teacher", "teacher.more"}),
                         ("align.training.precision=fp32", {"align"})):  # fmt: skip
        hours, advice = found(change)
        assert advice is None, "no GPU that would be slow"
        for step, count in hours.items():
            assert count == pytest.approx(fast[step] * (989 / 67 if step in slow else 1)), step
    monkeypatch.setattr(compute, "usable_gpus", lambda launch: 1)
    assert found()[1] is None
    assert found("embed.precision=fp32")[1] == (
        "embed.base, embed: fp32 on a GPU; embed.precision: bf16 is many times faster"
    )
    assert "teacher.training.precision: bf16" in (found("teacher.training.precision=fp32")[1] or "")


def test_every_training_and_encoding_has_its_operations(tmp_path: Path) -> None:
    systems = "evaluate.systems=[teacher, teacher-base, teacher-more, student-aligned, student-refined]"
    recipe = load_recipe(write_recipe(tmp_path, tiny_tree(tmp_path)), [systems])
    counts = Counts(documents=100, queries=50, tokens={"query": 4, "document": 8})
    found = compute.operations(recipe, counts, {"teacher": BIG, "student": BIG})
    assert set(found) == {"embed.base", "teacher", "embed", "align", "refine", "teacher.more", "embed.more"}
    assert found["teacher.more"] / 20 == pytest.approx(found["teacher"] / 40), "as many steps as the refinement"
    assert found["embed.more"] == found["embed.base"] == forward_operations(BIG, 100, 8)
    online = load_recipe(write_recipe(tmp_path, tiny_tree(tmp_path)), ["align.targets=online"])
    more = compute.operations(online, counts, {"teacher": BIG, "student": BIG})["align"] - found["align"]
    assert more == pytest.approx(60 * forward_operations(BIG, 32, 4))


# ------------------------------------------------------------------------------------------------ full-size recipes

RECIPES = Path(__file__).parents[2] / "recipes"
STUDENTS = {  # parameters of the cut student, by hand: 155,309,056 of the token table, 1,024 of the last norm, layers
    "qwen3-8b-to-190m": 155_309_056 + 1_024 + 4 * (1024 * (2 * 2048 + 2 * 1024 + 3 * 768) + 2 * 1024 + 2 * 128),
    "qwen3-4b-to-0.6b": PARAMETERS["0.6b"],
    "qwen3-0.6b-to-14-layers": PARAMETERS["0.6b"] - 14 * 15_730_944,
}


def _serve_configs(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The models' configs, and no weights, as if they were got from the hub."""
    for size, config in QWEN3.items():
        model = folder / f"Qwen3-Embedding-{size.upper()}"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(config | COMMON))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda model, **_: str(folder / Path(model).name))


@pytest.mark.parametrize("name", STUDENTS)
def test_what_full_size_recipes_take_is_told_without_weights(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of configs alone: students to the last parameter, memory of the order that the sizes ask for."""
    _serve_configs(monkeypatch, tmp_path)
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    models = models_of(recipe)
    assert models["student"].parameters == STUDENTS[name]
    counts = Counts(documents=1e6, queries=1e5, tokens={"query": 30, "document": 100})
    memory, teacher = needs(recipe, models, counts)["teacher"].memory, models["teacher"]
    if recipe.teacher.lora:
        assert teacher.adapters == 36 * 256 * (4 * 8192 - 2 * (4096 - 1024) + 3 * (4096 + 12_288))
        assert memory["weights"] == 2 * teacher.parameters + 4 * teacher.adapters, "they rest in bf16"
    else:
        assert memory["weights"] == 4 * teacher.parameters
        assert memory["gradients and moments"] == 12 * teacher.parameters
    hours = {step: compute.gpu_of(recipe).hours(count)
             for step, count in compute.operations(recipe, counts, models).items()}  # fmt: skip
    tokens = 6 * recipe.teacher.training.batch_size * 2_000 * 88  # 30 of one query and 100 of five documents, mean 88
    assert hours["teacher"] > 4 * teacher.body * tokens / (0.4 * 989e12) / 3600


@pytest.mark.parametrize("name", STUDENTS)
def test_students_of_full_size_recipes_train_on_queries_of_any_length(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On GPUs of 80 GB, one or eight, with every query of a batch as long as the student reads."""
    _serve_configs(monkeypatch, tmp_path)
    monkeypatch.chdir(RECIPES.parent)
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    gpus = 8 if recipe.launch.accelerate else 1
    for module in (needs_module, compute):
        monkeypatch.setattr(module, "usable_gpus", lambda launch: gpus)
    counts = Counts(documents=1e6, queries=1e5, tokens={"query": recipe.student.max_length or 0, "document": 100})
    found = needs(recipe, models_of(recipe), counts)
    for stage in ("align", "refine"):
        memory = found[stage].memory
        assert memory["weights"] + memory["gradients and moments"] + found[stage].activations < 0.8 * 80e9, stage
