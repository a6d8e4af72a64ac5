"""Secrets: known by their names and shapes, refused in configs, blotted out of texts.

A config is saved with its run, shown in the report and sent to W&B, so no secret may be in it:
keys and passwords come from the environment of the processes that need them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "***"
_SHORTEST = 8  # of a value that is blotted out: a shorter one would take ordinary words with it

# `HF_TOKEN`, `AWS_SECRET_ACCESS_KEY`, `WANDB_API_KEY`; not `TOKENIZERS_PARALLELISM`.
_VARIABLE = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)(_ID)?$",
    re.IGNORECASE,
)
# `hf_token`, `api_key`, `password`; not `eos_token`, `max_tokens` or `api_key_env`.
_SETTING = re.compile(
    r"^token$|(^|_)(api_?key|(access|secret|private)_key|secret|password|passwd|credentials?"
    r"|(hf|api|access|auth|bearer|refresh)_token)$",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"(://[^\s/:@]*:)[^\s/]+(@)")
_URL_QUERY = re.compile(
    r"([?&][\w-]*(?:key|token|secret|password|signature|sig)=)[^\s&#]+", re.IGNORECASE
)
_KNOWN_KEY = re.compile(r"\b(?:sk-|hf_|gh[pousr]_|wandb_v\d_)[A-Za-z0-9_-]{16,}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_INSTEAD = "set it in the environment of the machine or the cluster's nodes instead"


def redact(text: str, *secrets: str) -> str:
    """`text` with `***` in place of secrets.

    Those are: `secrets`, values of environment variables that are named like secrets, passwords
    and keys in URLs, and keys that are known by their shape.
    """
    for secret in (*secrets, *_secrets_of_environment()):
        text = text.replace(secret, HIDDEN)
    text = _URL_PASSWORD.sub(rf"\1{HIDDEN}\2", text)
    text = _URL_QUERY.sub(rf"\1{HIDDEN}", text)
    return _KNOWN_KEY.sub(HIDDEN, text)


def secrets_in(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Where a tree of settings holds a secret: the dotted key, and what to do. Never the value."""
    for name, value in settings.items():
        key = f"{path}.{name}" if path else str(name)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                yield from secrets_in(one, key)
            elif (reason := _reason(path, str(name), one)) is not None:
                yield key, reason


def _reason(path: str, name: str, value: Any) -> str | None:
    is_variable = path.rpartition(".")[2] == "env"
    given = not isinstance(value, bool) and value not in (None, "")
    if given and (_VARIABLE if is_variable else _SETTING).search(name):
        return f"a secret has no place in a config, which is saved and shown; {_INSTEAD}"
    if name.endswith("_env") and isinstance(value, str) and not _NAME.fullmatch(value):
        return "give the name of an environment variable, never its value"
    text = value if isinstance(value, str) else ""
    if _URL_PASSWORD.search(text) or _URL_QUERY.search(text):
        return f"holds a URL with a password or key in it; {_INSTEAD}"
    if _KNOWN_KEY.search(text):
        return f"holds an access key; {_INSTEAD}"
    return None


def _secrets_of_environment() -> list[str]:
    """The longest first: one may be part of another."""
    found = {value for name, value in os.environ.items() if _VARIABLE.search(name)}
    return sorted((value for value in found if len(value) >= _SHORTEST), key=len, reverse=True)
