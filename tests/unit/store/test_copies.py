"""A node's copies: one process makes each, and room is made without taking one away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rise_ray.store import copies
from rise_ray.store.copies import KEPT_COPIES, node_copy

# Makes or takes a copy, as often as it is told to on its stdin; the number of its own makings.
PROCESS = """
import sys, tempfile, time
from pathlib import Path
from rise_ray.store.copies import node_copy

tempfile.tempdir = sys.argv[1]
for key in sys.stdin:
    made = []
    def fill(folder):
        folder.mkdir()
        (folder / "a").write_text(key)
        if key == "half\\n":
            print("filling", flush=True)
            time.sleep(600)
        time.sleep(0.2)  # the others come while it is being made
        made.append(1)
    copy = node_copy("run", key.strip(), fill)
    print(len(made), (copy / "a").read_text().strip(), flush=True)
"""


class Process:
    """Another process of the node, which lives until it is killed."""

    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def ask(self, key: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{key}\n")
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def family(root: Path) -> Path:
    return root / f"rise-ray-{os.getuid()}" / "run"


def make(folder: Path) -> None:
    folder.mkdir()
    (folder / "a").write_text("1")


def there(family: Path) -> set[str]:
    return {path.name for path in family.iterdir() if path.is_dir()}


def test_of_many_processes_that_want_a_copy_at_once_one_makes_it(root: Path) -> None:
    processes = [Process(root) for _ in range(4)]
    with ThreadPoolExecutor(len(processes)) as pool:
        answers = list(pool.map(lambda process: process.ask("key"), processes))
    for process in processes:
        process.kill()
    assert sorted(answers) == ["0 key", "0 key", "0 key", "1 key"]


def test_a_copy_that_its_maker_did_not_finish_is_made_again(root: Path, family: Path) -> None:
    killed, other = Process(root), Process(root)
    assert killed.ask("half") == "filling"
    killed.kill()
    assert (family / "half.tmp" / "a").exists()
    node_copy("run", "half", make)
    assert (family / "half" / "a").read_text() == "1"
    assert other.ask("half") == "0 1"
    other.kill()


def test_the_latest_copies_and_those_in_use_are_kept(root: Path, family: Path) -> None:
    user, gone = Process(root), Process(root)
    assert user.ask("used") == "1 used"
    for key in ("old", "older", "half"):
        gone.ask(key)
    gone.kill()
    for key in range(KEPT_COPIES):
        node_copy("run", str(key), make)
        copies._in_use.clear()  # as if another process had made it: the marks' files stay open
    assert there(family) == {"used", *map(str, range(KEPT_COPIES))}
    user.kill()
    node_copy("run", "newest", make)
    assert there(family) >= {"newest", str(KEPT_COPIES - 1)}
    assert "used" not in there(family)
    node_copy("another run", "0", make)
    assert "newest" in there(family)


def test_a_copy_that_is_used_again_is_not_an_old_one(root: Path, family: Path) -> None:
    """Two tracks are evaluated in turns."""
    gone = Process(root)
    for key in ("control", "iteration", "control"):
        gone.ask(key)
    gone.kill()
    node_copy("run", "new", make)
    assert there(family) == {"control", "new"}


def test_a_copy_that_somebody_removed_is_made_again(family: Path) -> None:
    copy = node_copy("run", "key", make)
    (copy / "a").unlink()
    copy.rmdir()
    assert (node_copy("run", "key", make) / "a").exists()
