"""Text from outside as it may be shown: names, prompts, paths and messages may hold anything at all.

What a terminal obeys instead of printing it, or what changes the order of what is read, is shown as its escape. JSON
keeps the text as it is: it has escapes of its own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

# Characters that are shown of a name or a value, of a cell of a table, of a line, of a whole message.
NAME, CELL, LINE, MESSAGE = 120, 1000, 1500, 1900
# Control characters (ESC begins a terminal's commands), line and paragraph separators, marks of direction and other
# characters without a width, lone surrogates (bytes of a path that are no UTF-8), tags.
HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
# What Markdown, or HTML inside it, gives a meaning in the middle of a line.
MARKS = re.compile(r"[\\`*_\[\]<>|~&$#]")


def visible(text: str, longest: int | None = NAME, keep: str = "") -> str:
    """The text with what is not printed as escapes (``\\x1b``, ``\\n``), and its middle cut out where it is long.

    Args:
        text: from anywhere.
        longest: characters; None: any number.
        keep: characters that stay although they are hidden: ``"\\n"`` in a text of several lines.
    """
    shown = HIDDEN.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), cut(text, longest))
    return cut(shown, longest)


def cut(text: str, longest: int | None) -> str:
    """Beginning and end of a text that has more than ``longest`` characters, and how many are left out between."""
    if longest is None or len(text) <= longest:
        return text
    mark = f"…[{len(text) - longest:,} more]…"
    kept = max(longest - len(mark), 2)
    head = kept * 2 // 3
    return text[:head] + mark + text[len(text) - (kept - head) :]


def as_message(text: str) -> str:
    """A message of one line or several, none of them too long, and not too many."""
    lines = [visible(line, LINE) for line in text.split("\n")]
    length = 0
    for index, line in enumerate(lines):
        length += len(line) + 1
        if length > MESSAGE and index > 0:
            return "\n".join([*lines[:index], f"... and {len(lines) - index:,} more lines"])
    return "\n".join(lines)


def quoted(value: object, longest: int = NAME) -> str:
    """A value as Python writes it, its middle cut out where it is long; one that cannot be written by its type."""
    try:
        return cut(repr(value), longest)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits; deep nesting
        return f"a {type(value).__name__} too long to show"


def listed(names: Iterable[str], longest: int = LINE // 2) -> str:
    """Names with commas between them, as many as ``longest`` characters hold, and how many are left out."""
    shown: list[str] = []
    length = 0
    rest = 0
    for name in names:
        length += min(len(name), NAME) + 2
        if length > longest:
            rest += 1
        else:
            shown.append(cut(name, NAME))
    return ", ".join(shown) + (f" and {rest:,} more" if rest else "")


def in_markdown(text: str, longest: int = NAME) -> str:
    """One line of Markdown that reads as the text: no markup begins in it; an address leads to itself."""
    return MARKS.sub(lambda match: f"\\{match[0]}", visible(text, longest))


def code_in_markdown(text: str, longest: int = CELL) -> str:
    """The text as a span of code, between more backticks than it holds in a row."""
    shown = visible(text, longest)
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def shell_word(text: str) -> str:
    """A word that a POSIX shell reads as the text; with hidden characters in it one that bash and zsh do."""
    if not HIDDEN.search(text):
        return shlex.quote(text)
    plain = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + HIDDEN.sub(lambda match: _shell_escape(ord(match[0])), plain) + "'"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _shell_escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a path that is no UTF-8, as Python keeps it
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\U{code:08x}"
