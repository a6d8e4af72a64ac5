"""The command line of each of our commands: what is wrong with it is said without its secrets."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from rise_ray.text import terminal_text


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with errors that are safe to show."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and `message`; exit status 2."""
        super().error(terminal_text(message))

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's, but for `refuse`."""
        options, rest = self.parse_known_args(args, namespace)
        self.refuse(rest)
        return options

    def parse_intermixed_args(
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> Any:
        """As argparse's, but for `refuse`."""
        options, rest = self.parse_known_intermixed_args(args, namespace)
        self.refuse(rest)
        return options

    def refuse(self, rest: Sequence[str]) -> None:
        """End with an error if there are arguments that nothing takes.

        It names one, and not the value after its `=`, which may be a secret.
        """
        unknown = [argument for argument in rest if argument.startswith("-")]
        if unknown:
            self.error(f"unknown option {unknown[0].partition('=')[0]}")
        if rest:
            self.error(f"unrecognized argument {rest[0].partition('=')[0]}")
