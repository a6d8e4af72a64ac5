"""The command line of each of our commands: what is wrong with it is said without its secrets."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, NoReturn

from rise_ray.text import terminal_text


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with errors that are safe to show."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and `message`; exit status 2."""
        super().error(terminal_text(message))

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's, but `overrides` may stand after options, too.

        An argument that nothing takes is named without what follows its `=`: it may be a secret.
        """
        options, rest = self.parse_known_args(args, namespace)
        if "overrides" in options:
            options.overrides += [argument for argument in rest if not argument.startswith("-")]
            rest = [argument for argument in rest if argument.startswith("-")]
        for argument in rest:
            kind = "unknown option" if argument.startswith("-") else "unrecognized argument"
            self.error(f"{kind} {argument.partition('=')[0]}")
        return options
