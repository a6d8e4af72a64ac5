"""Who drives a run: one driver at a time, also after one that died without a word.

`owner.json` in the run folder names the driver, which renews it every few seconds. A dead owner
is replaced: at once where its machine shows that its process is gone, elsewhere when the file has
not changed for a whole lease. Clocks of different machines are never compared.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rise_ray.cluster.machine import this_machine
from rise_ray.cluster.stop import end_at_once
from rise_ray.errors import StoreError
from rise_ray.store.files import Folder

OWNER = "owner.json"
SCHEMA_VERSION = "2"
LEASE_S = 60.0
_BEAT_S = 10.0
_SETTLE_S = 0.3  # two drivers that start together both write; the later one's file stays

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owner:
    """One driver, as `owner.json` has it."""

    token: str
    """Drawn at the driver's start: no two are equal."""
    host: str
    machine: str
    """Kernel and process space: where it is ours, `pid` can be looked up."""
    pid: int
    process_started: int
    """Clock ticks after the machine's start: no clock that is set changes them."""
    since: str
    """ISO 8601, UTC."""
    beat: int = 0
    """Grows while the owner lives."""
    schema_version: str = SCHEMA_VERSION

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def current_owner(folder: Folder) -> Owner | None:
    """The driver that `owner.json` names, alive or not; None without one.

    Raises:
        StoreError: the file is damaged or of another schema version.
    """
    if not folder.exists(OWNER):
        return None
    where = f"{folder.uri}/{OWNER}"
    remedy = "if no driver runs on this folder, delete the file"
    try:
        content = json.loads(folder.read(OWNER))
        version = content["schema_version"]
        if version == SCHEMA_VERSION:
            return Owner(**content)
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{where}: damaged: {error!r}; {remedy}") from error
    raise StoreError(
        f"{where}: of schema version {version}; this rise-ray reads {SCHEMA_VERSION}; {remedy}"
    )


def refuse_if_driven(folder: Folder) -> None:
    """Raise if another driver is seen to live on this machine.

    Raises:
        StoreError: with the owner's name and since when.
    """
    owner = current_owner(folder)
    if owner is not None and owner.machine == this_machine() and _lives(owner):
        raise _refusal(folder, owner)


@contextmanager
def ownership(folder: Folder, say: Callable[[str], None]) -> Iterator[None]:
    """The right to write to a run folder, for the time of a `with` block.

    A driver that finds another's name in its file (it was suspended for longer than a lease) ends
    at once, with exit status 1: what it would tidy up is the other's now. `say` is told why
    entering waits.

    Raises:
        StoreError: on entry: another driver lives; on exit: the file cannot be removed.
    """
    mine = Owner(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=this_machine(),
        pid=os.getpid(),
        process_started=_start_ticks(os.getpid()),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    refuse_if_driven(folder)
    before = current_owner(folder)
    if before is not None and before.machine != mine.machine:
        _wait_until_silent(folder, before, say)
    _write(folder, mine)
    time.sleep(_SETTLE_S)
    owner = current_owner(folder)
    if owner is None or owner.token != mine.token:
        raise _refusal(folder, owner or mine)
    over = threading.Event()
    keeper = threading.Thread(target=_keep, args=(folder, mine, over), daemon=True)
    keeper.start()

    def give_up() -> None:
        over.set()
        keeper.join()
        owner = current_owner(folder)
        if owner is not None and owner.token == mine.token:
            folder.remove(OWNER)

    try:
        yield
    except BaseException:  # what ended the run is to be told, and a stop has a status of its own
        try:
            give_up()
        except StoreError as failure:
            logger.warning("the run's owner could not be removed: %s", failure)
        raise
    give_up()


def _wait_until_silent(folder: Folder, owner: Owner, say: Callable[[str], None]) -> None:
    say(f"waiting up to {LEASE_S:g} s for a sign of life of the driver before: {owner}")
    until = time.monotonic() + LEASE_S
    while time.monotonic() < until:
        time.sleep(1.0)
        now = current_owner(folder)
        if now is None:
            return
        if now != owner:
            raise _refusal(folder, now)


def _keep(folder: Folder, mine: Owner, over: threading.Event) -> None:
    while not over.wait(_BEAT_S):
        try:
            owner = current_owner(folder)
            if owner is not None and owner.token != mine.token:
                lost = f"{_taken(folder, owner)}; this one was away for too long and ends"
                end_at_once(f"error: {lost}", 1)
            mine = replace(mine, beat=mine.beat + 1)
            _write(folder, mine)
        except StoreError as error:  # a store that is away for a moment: the next beat tries
            logger.warning("the run's owner could not be renewed: %s", error)


def _write(folder: Folder, owner: Owner) -> None:
    folder.write(OWNER, json.dumps(asdict(owner), indent=1).encode())


def _refusal(folder: Folder, owner: Owner) -> StoreError:
    return StoreError(
        f"{_taken(folder, owner)}; nothing was changed; stop it first, or choose another `name`"
    )


def _taken(folder: Folder, owner: Owner) -> str:
    return f"{folder.uri}: another driver works on this run: {owner}"


def _lives(owner: Owner) -> bool:
    """Whether a process of this machine is the owner, and not another with its number."""
    try:
        return _start_ticks(owner.pid) == owner.process_started
    except ProcessLookupError:
        return False


def _start_ticks(pid: int) -> int:
    """When a process started (proc(5), stat); psutil's time of that moves with the clock.

    Raises:
        ProcessLookupError: it is gone, or a zombie.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    state, *fields = text.rpartition(")")[2].split()
    if state in "ZX":
        raise ProcessLookupError(pid)
    return int(fields[18])
