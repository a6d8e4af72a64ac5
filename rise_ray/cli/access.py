"""What may be out of reach of the machine that looks: the hub, a teacher's endpoint, a store.

On a laptop that is no fault of the config (`NotCheckedError`); where a run starts, it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rise_ray.cluster.machine import connection_failure
from rise_ray.config.settings import RunConfig
from rise_ray.config.teacher import OpenAITeacher
from rise_ray.errors import ModelError, RiseError, StoreError, TeacherError
from rise_ray.mdp import Problem
from rise_ray.models.locate import locate_model
from rise_ray.rollout.chat import load_tokenizer
from rise_ray.run.journal import STATE, Run
from rise_ray.run.owner import refuse_if_driven
from rise_ray.store.files import Folder, UnreachableError
from rise_ray.tasks.base import Task
from rise_ray.tasks.dataset import DatasetTask
from rise_ray.tasks.source import is_file

_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


class NotCheckedError(Exception):
    """A step cannot be made here. `error` is what a run makes of it, None where it can go on."""

    def __init__(self, reason: str, error: RiseError | None = None) -> None:
        super().__init__(reason)
        self.error = error


def look_at_run(config: RunConfig, resume: bool) -> Run:
    """The run in the run folder, as far as there is one; nothing is created.

    Raises:
        StoreError: the folder holds another run, has a driver already, or cannot be written.
        NotCheckedError: the storage cannot be reached from here.
    """
    try:
        run = Run(config, resume, create=False)
        free = not run.folder.exists(STATE)
        if not run.finished:
            refuse_if_driven(run.folder)
    except UnreachableError as error:
        raise NotCheckedError(f"`storage`: {error}", error) from error
    except RiseError:
        raise
    except Exception as error:  # a file system that fsspec does not know, or lacks a package for
        message = f"`storage`: {config.storage}: {type(error).__name__}: {error}"
        raise NotCheckedError(message, StoreError(f"{message}; correct `storage`")) from error
    if free and run.folder.is_local:
        folder = Path(run.folder.path)
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not existing.is_dir():
            raise StoreError(f"{folder}: cannot be written: {existing} is a file; change `storage`")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise StoreError(
                f"{folder}: cannot be written: no permission in {existing}; change `storage`"
            )
    return run


def load_problems(task: Task, split: str) -> list[Problem]:
    """`task.load(split)`.

    Raises:
        DataError: the source is missing or malformed.
        NotCheckedError: it is on the hub, and the hub does not answer.
    """
    if isinstance(task, DatasetTask) and not task.paths and not is_file(task.path):
        with _hub():
            return task.load(split)
    return task.load(split)


def load_model_tokenizer(path: str, chat_template: str | None, trust_remote_code: bool) -> Any:
    """The tokenizer of a model whose weights are there too, as far as that can be seen.

    Raises:
        ModelError: the model, its tokenizer or the template cannot be used.
        NotCheckedError: the model is on the hub or under a URI that cannot be looked at here.
    """
    if "://" in path:
        try:
            found = Folder(path).exists("config.json")
        except Exception as error:  # every file system of fsspec has errors of its own
            message = f"model {path}: {type(error).__name__}: {error}"
            raise NotCheckedError(message, ModelError(message)) from error
        if not found:
            raise ModelError(f"model {path}: there is no config.json: not a Hugging Face model")
        raise NotCheckedError(f"{path} is there; it is copied to each node when the run starts")
    located = locate_model(path)
    if not Path(located).is_dir():
        with _hub(f"{path} is no folder here, and the hub is not reachable from here"):
            return load_tokenizer(located, chat_template, trust_remote_code)
    if next(Path(located).glob("*.safetensors"), None) is None:
        raise ModelError(f"model {path}: the folder holds no weights (*.safetensors)")
    return load_tokenizer(located, chat_template, trust_remote_code)


def check_endpoint(teacher: OpenAITeacher) -> str:
    """Whether the teacher's key is set and its endpoint takes connections; what was found.

    Raises:
        TeacherError: the key is not set.
        NotCheckedError: the endpoint cannot be reached from here.
    """
    if not os.environ.get(teacher.api_key_env):
        raise TeacherError(
            f"`teacher.api_key_env`: the environment variable {teacher.api_key_env} is not set; "
            "set it to the endpoint's key"
        )
    url = teacher.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    failure = None if _behind_proxy() else connection_failure(url)
    if failure is not None:
        message = f"teacher {teacher.model} at {url}: cannot be reached: {failure}"
        raise NotCheckedError(
            f"{message} (from here)",
            TeacherError(f"{message}; start it, or correct `teacher.base_url`"),
        )
    return f"{teacher.model} at {url}; {teacher.api_key_env} is set"


@contextmanager
def _hub(reason: str | None = None) -> Iterator[None]:
    """Around a read of the hub: NotCheckedError where it does not answer and no cache has it."""
    told = "HF_HUB_OFFLINE" in os.environ or _behind_proxy()
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if not told and connection_failure(endpoint) is not None:
        # Else its client tries for a minute. It looks at this when it is first imported.
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    except RiseError as error:
        from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ConnectionError | LocalEntryNotFoundError | OfflineModeIsEnabled):
                raise NotCheckedError(reason or str(error), error) from error
            cause = cause.__cause__ or cause.__context__
        raise


def _behind_proxy() -> bool:
    return any(os.environ.get(name) for name in _PROXIES)
