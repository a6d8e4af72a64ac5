"""Where a model is: packaged, in a folder, under a URI, or on the hub.

And in which precision it runs: the one place that looks at the kind of device.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from rise_ray.errors import ModelError
from rise_ray.store.files import Folder

PACKAGE = "package:"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def locate_model(path: str) -> str:
    """What Hugging Face and vLLM can load on this node: a local folder, or a hub name.

    `path` is `package:NAME` (shipped with rise-ray), a local folder, a URI, or a hub name.

    Raises:
        ModelError: a folder or packaged model that is named is not there, is no model, has its
            weights as pickles, or has a truncated weights file.
        StoreError: there is nothing under a URI.
    """
    if path.startswith(PACKAGE):
        folder = Path(str(resources.files("rise_ray.models") / path.removeprefix(PACKAGE)))
        if not (folder / "config.json").is_file():
            raise ModelError(f"model {path}: rise-ray ships no model of this name")
        return str(folder)
    folder = Folder(path).localize() if "://" in path else Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model {path}: the folder has no config.json: not a Hugging Face model"
            )
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
            if pickles:
                raise ModelError(
                    f"model {path}: its weights are a pickle ({pickles[0]}), which could run code "
                    "when it is read; only safetensors are: convert it where you trust it, by "
                    "transformers' from_pretrained and save_pretrained"
                )
            if (folder / "parity.json").is_file():  # a checkpoint of a run, which holds both
                raise ModelError(f"model {path}: its weights are missing; restore the folder")
        for file in weights:
            try:  # find a truncated one here, and not minutes later in a worker's trace
                with safe_open(file, framework="numpy"):
                    pass  # opening compares the size of the file with what its header says
            except SafetensorError as error:
                reason = f"not a whole safetensors file: {error}"
                raise ModelError(f"{file}: {reason}; restore it") from error
        return str(folder)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ModelError(f"model {path}: there is no such folder")
    return path


def locate_tokenizer(path: str) -> str:
    """`locate_model` for a tokenizer alone: weights under a URI are left where they are."""
    if "://" in path:
        return str(Folder(path).localize(without=".safetensors"))
    return locate_model(path)


def shared_model(path: str) -> str:
    """`locate_model` for every node: a URI stays one, and each node makes its own copy."""
    return path if "://" in path else locate_model(path)


def model_folder(path: str) -> Path:
    """A model's files on this node: a hub model comes from the hub or from its local cache.

    Raises:
        ModelError: it is not there, or the hub cannot be reached.
    """
    located = locate_model(path)
    if Path(located).is_dir():
        return Path(located)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(located, allow_patterns=["*.safetensors", "*.json"]))
    except (OSError, ValueError) as error:
        raise ModelError(f"model {path}: cannot be taken from the hub: {error}") from error


def resolve_dtype(
    setting: Literal["auto", "float32", "bfloat16"], num_gpus: float
) -> Literal["float32", "bfloat16"]:
    """`auto` is bfloat16 for an actor that has a GPU and float32 for one that has none."""
    if setting != "auto":
        return setting
    return "bfloat16" if num_gpus else "float32"
