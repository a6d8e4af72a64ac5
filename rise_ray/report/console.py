"""What the terminal shows: which stage, how far, how fast, and the results in the end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import rich.console

from rise_ray.report.records import protocol, trainings
from rise_ray.report.table import main_metrics, results_table, training_table
from rise_ray.report.tracking import TrackerHandle
from rise_ray.rollout.collect import Tally
from rise_ray.text import terminal_text

_EVERY_S = 5.0


class Console:
    """Plain lines with elapsed time: readable in a terminal, in a job's log and in CI.

    Where two threads do stages at the same time, what is said of the one that began first is told
    with its name.
    """

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._heading: str | None = None
        """Of the stage that began last."""
        self._out = rich.console.Console(highlight=False, emoji=False)
        self._started = time.monotonic()
        self._last = 0.0
        self._rolling = self._started

    def line(self, text: str) -> None:
        """One line with the time since the start, whatever `text` holds."""
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        self._print(f"{minutes:3d}:{seconds:02d}  {text}")

    def stage(self, heading: str) -> None:
        """This thread begins a stage."""
        self._heading = self._of_thread.heading = heading
        self.line(heading)

    def rolling(self) -> None:
        """Episodes start now: rates count from here."""
        self._rolling = time.monotonic()

    def step(self, text: str) -> None:
        """A line of this thread's stage."""
        heading: str | None = getattr(self._of_thread, "heading", None)
        of = "" if heading in (None, self._heading) else f"{heading}: "
        self.line(f"  {of}{text}")

    def rolled(self, done: int, total: int, tally: Tally) -> None:
        """Progress of a rollout phase, every few seconds and at its end."""
        now = time.monotonic()
        if done < total and now - self._last < _EVERY_S:
            return
        self._last = now
        rate = tally.tokens / max(now - self._rolling, 1e-9)
        self.step(f"{done:,} of {total:,} episodes, {rate:,.0f} tokens/s")

    @contextmanager
    def following(self, tracker: TrackerHandle) -> Iterator[None]:
        """Show the training's newest record every few seconds, from beside the training."""
        stop, heading = threading.Event(), getattr(self._of_thread, "heading", None)

        def follow() -> None:
            self._of_thread.heading, seen = heading, None
            while not stop.wait(_EVERY_S):
                record = tracker.latest()
                if record and record != seen and "step" in record:
                    seen = record
                    self.step(
                        f"step {record['step']:,} of {record['steps']:,}, loss "
                        f"{record['loss']:.3f}, {record['tokens_per_s']:,.0f} tokens/s"
                    )

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(_EVERY_S)  # a tracker that does not answer ends the run, but not here

    def scores(self, record: Mapping[str, Any]) -> None:
        """An evaluation's main figures in one line."""
        metrics = record["metrics"]
        names = main_metrics(*protocol(record))
        shown = [(name, metrics[name]["value"]) for name in names]
        self.step(", ".join(f"{name} {100 * v:.1f}" for name, v in shown if v is not None))

    def results(
        self, records: Sequence[Mapping[str, Any]], comparisons: Sequence[Any], report: str
    ) -> None:
        """The results, what each track was trained on, and where the report is."""
        self._out.print(results_table(records, comparisons))
        if trained := trainings(records):
            self._out.print("", training_table(trained))
        self._print(f"Report: {report}")

    def show_warnings(self) -> None:
        """Print what rise-ray's modules warn of (a lost worker, for example) as lines."""
        logging.getLogger("rise_ray").addHandler(_WarningLines(self))

    def _print(self, text: str) -> None:
        self._out.print(terminal_text(text, keep=""), markup=False, soft_wrap=True)


class _WarningLines(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.step(f"warning: {record.getMessage()}")
