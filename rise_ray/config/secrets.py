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

# Values, as text in lower case, that are no secret whatever the name says.
_NOTHING = {"", "none", "null", "true", "false", "0", "1", "[]", "{}"}

# `HF_TOKEN_READ`, `AWS_ACCESS_KEY_ID`, `DB_PASS`; not `TOKENIZERS_PARALLELISM`, `HF_TOKEN_PATH`.
_VARIABLE = re.compile(
    r"^(?!.*_(FILE|PATH|DIR|URL|NAME|TYPE|SIZE|LIMIT|LENGTH|LEN|THRESHOLD|INDEX)$).*"
    r"((TOKEN|(API_?KEY|ACCESS_?KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?)(_.*)?"
    r"|(?<!_P)KEY(_ID|_\d+)?|(?<!BY)PASS|_PWD)$",
    re.IGNORECASE,
)
# `hf_token`, `X-Api-Key`, `passwords`; not `eos_token`, `max_tokens` or `api_key_env`.
_SETTING = re.compile(
    r"^token$|(^|_)(api_?key|(access|account|encryption|private|secret|signing|ssh)_?key"
    r"|secret|pass(word|wd|phrase|code)|pwd|credential|authorization|cookie"
    r"|(hf|hub|api|access|auth|bearer|client|github|id|refresh|sas|security|session)_?token)s?$",
    re.IGNORECASE,
)
# A password may have slashes, as AWS's do; `http://host:8000/x@y` has a port there. The bound keeps
# a hostile text from taking quadratic time.
_URL_PASSWORD = re.compile(r"(://[^\s/:\[]*:)(?!\d{2,5}/)\S{1,4096}(@)")
_URL_QUERY = re.compile(
    r"([?&][\w-]*(?:key|token|secret|password|signature|sig)=)[^\s&#]+", re.IGNORECASE
)
_BEARER = re.compile(r"(\bBearer\s+)(?=\S*\d)\S{8,}", re.IGNORECASE)
_KNOWN_KEY = re.compile(
    r"\b(?:(?:sk-|hf_|gh[pousr]_|github_pat_|wandb_v\d_|nvapi-)[A-Za-z0-9_-]{16,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}\b)"
)
_PAIR = re.compile(r"-*([\w-]+)\s*[:=]\s*(\S+)")  # `--api-key=...`, `X-Api-Key: ...`
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_INSTEAD = "set it in the environment of the machine or the cluster's nodes instead"
_NAMED = f"a secret has no place in a config, which is saved and shown; {_INSTEAD}"
_HELD = (
    "holds a secret (an access key, a URL with a password or key in it, or the value of an "
    f"environment variable that is named like a secret); {_INSTEAD}"
)


def redact(text: str, *secrets: str) -> str:
    """`text` with `***` in place of secrets.

    Those are: `secrets`, values of environment variables that are named like secrets, passwords
    and keys in URLs, bearer tokens, and keys that are known by their shape.
    """
    held = {v for name, v in os.environ.items() if _VARIABLE.search(name) and len(v) >= _SHORTEST}
    # The longest first: one may be part of another.
    for secret in (*secrets, *sorted(held, key=len, reverse=True)):
        text = text.replace(secret, HIDDEN)
    text = _URL_PASSWORD.sub(rf"\1{HIDDEN}\2", text)
    text = _URL_QUERY.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1{HIDDEN}", text)
    return _KNOWN_KEY.sub(HIDDEN, text)


def secrets_in(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Where a tree of settings holds a secret: the dotted key, and what to do. Never the value."""
    is_variable = path.rpartition(".")[2] == "env"
    for name, value in settings.items():
        if _in_text(str(name)) is not None:  # in YAML `{api_key:abc}`, without a space, is a name
            yield f"{path}.{HIDDEN}" if path else HIDDEN, _HELD
            continue
        key = f"{path}.{name}" if path else str(name)
        if (reason := _by_name(str(name), value, is_variable)) is not None:
            yield key, reason
            continue
        for part in _parts(value):
            if isinstance(part, Mapping):
                yield from secrets_in(part, key)
            elif (reason := _in_text(str(part))) is not None:
                yield key, reason


def _parts(value: Any) -> Iterator[Any]:
    """The value, or what is in a list, however deep."""
    if not isinstance(value, list | tuple | set):
        yield value
        return
    for part in value:
        yield from _parts(part)


def _by_name(name: str, value: Any, is_variable: bool) -> str | None:
    if _sounds_secret(name, is_variable) and _is_given(value):
        return _NAMED
    if name.endswith("_env") and isinstance(value, str):
        if not _NAME.fullmatch(value):
            return "give the name of an environment variable, never its value"
        if _sounds_secret(name.removesuffix("_env")) and not _VARIABLE.search(value):
            return (
                "rename the environment variable to `<something>_API_KEY`: values of variables "
                "that are not named like a secret are not kept out of logs and errors"
            )
    return None


def _in_text(text: str) -> str | None:
    pair = _PAIR.fullmatch(text)
    if pair and _sounds_secret(pair[1]) and _is_given(pair[2]):
        return _NAMED
    return _HELD if redact(text) != text else None


def _sounds_secret(name: str, is_variable: bool = False) -> bool:
    if is_variable or name.isupper():
        return _VARIABLE.search(name) is not None
    words = re.sub(r"-|(?<=[a-z])(?=[A-Z])", "_", name)  # `X-Api-Key`, `clientSecret`
    return _SETTING.search(words) is not None


def _is_given(value: Any) -> bool:
    return str(value).lower() not in _NOTHING
