r"""The last `\boxed{...}` of a response: where every built-in task asks for the answer.

Responses are untrusted: this is one pass over the text, linear whatever the braces do.
"""

from __future__ import annotations

import re

# `\\.` comes after the box so that escaped braces (`\{`) and backslashes are stepped over.
_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}` or `\fbox{}` whose braces balance, or None.

    "Last" is the one that starts last, so of nested boxes it is the inner one. A box that is
    never closed (a truncated response) is not an answer.
    """
    opened: list[tuple[int, bool]] = []  # where each open group's content starts; is it a box?
    best: tuple[int, int] | None = None
    for token in _TOKEN.finditer(text):
        symbol = token.group()
        if symbol == "}":
            if not opened:
                continue  # a stray brace in prose closes nothing
            start, is_box = opened.pop()
            if is_box and (best is None or start > best[0]):
                best = (start, token.start())
        elif symbol.endswith("{") and symbol != r"\{":
            opened.append((token.end(), symbol != "{"))
    return None if best is None else text[best[0] : best[1]].strip()
