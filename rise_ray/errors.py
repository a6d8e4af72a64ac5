"""The errors a user can act on: each says what was wrong, where, and what to do.

`rise-ray` prints a `RiseError` as one message without a traceback (with one under `--debug`);
anything else that escapes is a defect of rise-ray and keeps its traceback.
"""

from __future__ import annotations

import textwrap

_LONGEST_CAUSE = 300  # characters: Ray adds what it has ever seen cause a death


class RiseError(Exception):
    """Base of every error that is the user's to solve: `exit_code` is the process's status."""

    exit_code = 1


class ConfigError(RiseError):
    """A setting is unknown, out of range or contradicts another; names the file and the key."""

    exit_code = 2


class DataError(RiseError):
    """A problem file is missing, unreadable or malformed; names the file and the line."""


class ModelError(RiseError):
    """A model folder, tokenizer or chat template cannot be used; names it and the reason."""


class ClusterError(RiseError):
    """Ray is not reachable or has fewer resources than the config needs."""


class StoreError(RiseError):
    """A run folder is unusable: holds another run, is owned by another driver, or is damaged."""


class RolloutError(RiseError):
    """Rollouts cannot go on: every worker failed, or too many episodes did."""


class TeacherError(RiseError):
    """The teacher cannot be reached, refused the request, or its budget is spent."""


class TrainError(RiseError):
    """Training stopped: no examples, a non-finite loss, or failed training workers."""


class SyncError(RiseError):
    """Weights did not arrive: a deadline was missed or the parity probe disagreed."""


def user_error(error: BaseException) -> RiseError | None:
    """The error for the user inside `error`, without the remote traces that Ray wraps around it.

    None: it holds none of ours.
    """
    while isinstance(inner := getattr(error, "cause", None), BaseException):
        error = inner
    return error if isinstance(error, RiseError) else None


def raise_if_ours(error: BaseException) -> None:
    """Ray wraps what a worker raised: an error for the user is raised again as itself."""
    ours = user_error(error)
    if ours is not None:
        raise ours from error


def cause(error: BaseException) -> str:
    """The last line of a Ray error: what happened, without the remote traceback."""
    inner = getattr(error, "cause", None) or error
    last = (str(inner).strip().splitlines() or [""])[-1]
    return f"{type(inner).__name__}: {textwrap.shorten(last, _LONGEST_CAUSE, placeholder=' ...')}"
