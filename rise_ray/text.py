"""Untrusted text made safe to show: models, graders, problems and servers write what they like.

`printable` is for pages and tables; `terminal_text` for whatever is printed as a line.
"""

from __future__ import annotations

import unicodedata

from rise_ray.config.secrets import redact

# Controls, format characters (bidirectional overrides, zero-width), lone surrogates, private use
# and the two Unicode line separators: none has a picture of its own, some steer terminals.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def printable(text: str, keep: str = "\n\t") -> str:
    r"""Any string, with characters that could steer a terminal or hide text written as `\x1b`.

    The control characters in `keep` stay.
    """
    return "".join(c if c in keep else _shown(c) for c in text)


def terminal_text(text: str, keep: str = "\n\t") -> str:
    """`printable` and without secrets: what every line that rise-ray prints goes through."""
    return printable(redact(text), keep)


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape").decode("ascii")
