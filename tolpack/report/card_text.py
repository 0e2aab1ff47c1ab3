"""Text of others in a model card: Markdown, HTML and YAML escaped.

Names and settings come from files that anybody may have made. In a card none of them may become a
link, a picture, a tag, or a key of the front matter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from tolpack.errors import printable

_MARKUP = re.compile(r"([!-%'-\-/:;=?-@\[-`{-~])")
# A dot makes a link or a list only here.
_DOT = re.compile(r"(\bwww|^\d+)\.", re.IGNORECASE | re.MULTILINE)
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def plain(text: str) -> str:
    """Return text that Markdown shows as it is: marks that may have a meaning are escaped."""
    escaped = _DOT.sub(r"\1\\.", _MARKUP.sub(r"\\\1", printable(text)))
    return "".join(_ENTITIES.get(one, one) for one in escaped)


def code(text: str) -> str:
    """Return text as a code span, also in a cell of a table."""
    shown = printable(text).replace("|", "\\|")
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {shown} {fence}" if longest else f"{fence}{shown}{fence}"


def fenced(language: str, lines: Sequence[str]) -> str:
    """Return lines as a block of code: none of them can end it."""
    longest = max((len(one) for line in lines for one in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence + language, *map(printable, lines), fence])


def front_matter(values: Mapping[str, str | Sequence[str]]) -> str:
    """Return keys and texts, or lists of texts, as the YAML that model hubs read."""
    lines = ["---"]
    for key, value in values.items():
        if isinstance(value, str):
            lines.append(f"{key}: {_quoted(value)}")
        else:
            lines += [f"{key}:", *(f"- {_quoted(one)}" for one in value)]
    return "\n".join([*lines, "---"])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose cells are Markdown."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _quoted(text: str) -> str:
    """Return a scalar of YAML: a string of JSON is one."""
    return json.dumps(printable(text), ensure_ascii=False)
