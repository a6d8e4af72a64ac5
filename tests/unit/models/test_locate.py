"""A model's name becomes what Hugging Face and vLLM can load on this node, or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from huggingface_hub import constants

from rise_ray.errors import ModelError, StoreError
from rise_ray.models.locate import locate_model, model_folder, resolve_dtype, shared_model
from rise_ray.store.files import Folder


def _model(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_a_folder_is_itself_and_a_home_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(tmp_path / "models" / "small")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (str(model), "~/models/small", f"file://{model}"):
        assert locate_model(path) == str(model)


def test_a_hub_name_is_left_to_the_hub() -> None:
    assert locate_model("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    assert locate_model("gpt2") == "gpt2"


@pytest.mark.parametrize("path", ["./none", "/none/there", "~/none", "a/b/c"])
def test_a_folder_that_is_not_there_is_no_hub_name(path: str) -> None:
    with pytest.raises(ModelError, match=f"model {path}: there is no such folder"):
        locate_model(path)


def test_a_folder_without_a_config_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        locate_model(str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))
    remote = Folder("memory://locate/unfinished")
    remote.write("vocab.txt", b"1")
    with pytest.raises(ModelError, match=r"memory://locate/unfinished.*no config\.json"):
        locate_model(remote.uri)
    remote.write("config.json", b"{}")  # the upload went on: the first look is not kept
    assert (Path(locate_model(remote.uri)) / "config.json").is_file()
    remote.remove()
    with pytest.raises(StoreError, match="no such folder"):
        locate_model(remote.uri)


def test_the_packaged_model_is_a_folder_of_this_installation() -> None:
    assert (Path(locate_model("package:countdown-base")) / "model.safetensors").is_file()


def test_a_packaged_model_that_does_not_exist_is_named() -> None:
    with pytest.raises(ModelError, match="package:none: rise-ray ships no model of this name"):
        locate_model("package:none")


@pytest.mark.parametrize(
    ("setting", "gpus", "dtype"),
    [
        ("auto", 0.0, "float32"),
        ("auto", 0.5, "bfloat16"),
        ("float32", 1.0, "float32"),
        ("bfloat16", 0.0, "bfloat16"),
    ],
)
def test_precision_follows_the_device_unless_it_is_set(
    setting: Literal["auto", "float32", "bfloat16"], gpus: float, dtype: str
) -> None:
    assert resolve_dtype(setting, gpus) == dtype


def test_other_nodes_are_given_the_uri_and_not_this_nodes_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))
    remote = Folder("memory://locate/shared")
    remote.write("config.json", b"{}")
    assert shared_model(remote.uri) == remote.uri
    assert shared_model("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    with pytest.raises(ModelError, match="no such folder"):
        shared_model("./none")


def test_a_hub_model_has_a_folder_on_this_node_or_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    cached = _model(tmp_path / "models--maker--small" / "snapshots" / commit)
    (tmp_path / "models--maker--small" / "refs").mkdir()
    (tmp_path / "models--maker--small" / "refs" / "main").write_text(commit)
    assert model_folder("maker/small") == cached
    with pytest.raises(ModelError, match="model maker/none: cannot be taken from the hub"):
        model_folder("maker/none")
