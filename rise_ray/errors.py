"""The errors a user can act on: each says what was wrong, where, and what to do.

`rise-ray` prints a `RiseError` as one message without a traceback (with one under `--debug`);
anything else that escapes is a defect of rise-ray and keeps its traceback.
"""

from __future__ import annotations


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
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error if isinstance(error, RiseError) else None
