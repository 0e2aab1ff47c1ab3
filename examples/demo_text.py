"""Extract the text of the demo model: the documentation in Python's own standard library.

The text is the topics of ``help()``, and the docstrings and longer comments of the library's
modules. The modules are parsed and never imported. Whole topics and modules are held out by a hash
of their names. No paragraph is used twice, and paragraphs that share twelve words in a row with
held-out text are not trained on.

Command, a few seconds, from a checkout::

    python examples/demo_text.py text

It writes ``train.txt`` and ``validation.txt``, whose documents are separated by ``<|endoftext|>``,
and ``heldout.txt``. Another version of Python brings another text.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

END_OF_TEXT = "<|endoftext|>"

SKIPPED_FOLDERS = {
    "site-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo",
    "encodings", "ensurepip", "pydoc_data", "__pycache__",
}  # fmt: skip
SHORTEST_TEXT = 80  # characters; shorter docstrings and comments say little more than the name
SHORTEST_UNIQUE = 60  # characters; shorter paragraphs ("Arguments:") may be repeated
LONGEST_HELD_OUT = 30_000  # characters of one document, so that no single one dominates
HELD_OUT_CHARACTERS = 160_000
QUOTE_WORDS = 12  # as many words in a row count as a quotation
EMAIL = re.compile(r"\S@\S+\.\S")
VALIDATION_CHARACTERS = 40_000


@dataclass(frozen=True, slots=True)
class Document:
    """The text of one help topic or one module; `plain` if it carries no copyright notice."""

    name: str
    text: str
    plain: bool


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents of each part. `validation` compares settings; `heldout` only reports."""

    train: list[str]
    validation: list[str]
    heldout: list[str]


def collect_documents() -> list[Document]:
    """Return the topics of ``help()`` and the documentation of every stdlib module, by name."""
    found = [Document(f"topic {name}", text, plain=True) for name, text in topics.items()]
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in library.rglob("*.py"):
        relative = path.relative_to(library)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts):
            source = path.read_text(encoding="utf-8", errors="replace")
            plain = not re.search(r"copyright|\(c\)|©", source, re.IGNORECASE)
            text = "\n\n".join(module_texts(source))
            found.append(Document(f"module {relative.as_posix()}", text, plain))
    return sorted((d for d in found if d.text.strip()), key=lambda d: d.name)


def module_texts(source: str) -> Iterator[str]:
    """Yield a module's docstrings and blocks of comment lines that are long enough, in order."""
    texts = [*docstrings(source), *comment_blocks(source)]
    for _, text in sorted(texts):
        if len(text) >= SHORTEST_TEXT and is_prose(text):
            yield text


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, docstring) of the module, its classes and its functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def comment_blocks(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each run of lines that hold nothing but a comment."""
    first, previous, block = 0, -1, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.line.lstrip()[:1] != "#":
            continue
        line = token.start[0]
        if line != previous + 1:
            yield first, "\n".join(block).strip()
            first, block = line, []
        block.append(re.sub(r"^#+:? ?", "", token.string).rstrip())
        previous = line
    yield first, "\n".join(block).strip()


def is_prose(text: str) -> bool:
    """Whether letters make up most of `text`: leaves out tables, rulers and disabled code."""
    visible = re.sub(r"\s", "", text)
    return sum(c.isalpha() for c in visible) >= 0.8 * len(visible)


def split_documents(documents: list[Document]) -> Corpus:
    """Hold out whole documents in the order of their names' hashes; train on the others.

    The held-out text comes first, so that what also occurs elsewhere (topics quote each other)
    is dropped from the training text. It is shipped, hence ``Document.plain``.
    """
    by_hash = sorted(documents, key=lambda d: hashlib.sha256(d.name.encode()).digest())
    candidates = [d for d in by_hash if d.plain and len(d.text) <= LONGEST_HELD_OUT]
    seen: set[str] = set()
    heldout = take(candidates, HELD_OUT_CHARACTERS, seen)
    validation = take(candidates, VALIDATION_CHARACTERS, seen)
    left = [unique_paragraphs(d.text, seen) for d in documents]
    quotable = {run for text in heldout + validation for run in word_runs(text)}
    train = [without_quotes(text, quotable) for text in left]
    return Corpus([text for text in train if text], validation, heldout)


def take(documents: list[Document], characters: int, seen: set[str]) -> list[str]:
    """Move documents from the front of the list until they hold `characters`."""
    texts: list[str] = []
    while documents and sum(map(len, texts)) < characters:
        texts.append(unique_paragraphs(documents.pop(0).text, seen))
    return [text for text in texts if text]


def unique_paragraphs(text: str, seen: set[str]) -> str:
    """Return `text` without the paragraphs in `seen`, and add the others to it.

    Paragraphs with an e-mail address are credits of people: they are left out as well.
    """
    kept = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        key = " ".join(paragraph.split())
        if key not in seen and not EMAIL.search(key):
            kept.append(paragraph.rstrip())
        if len(key) >= SHORTEST_UNIQUE:
            seen.add(key)
    enough = sum(map(len, kept)) >= SHORTEST_TEXT
    return "\n\n".join(kept).replace(END_OF_TEXT, "") if enough else ""


def without_quotes(text: str, quotable: set[tuple[str, ...]]) -> str:
    """Return `text` without the paragraphs that hold a run of words in `quotable`."""
    return "\n\n".join(p for p in text.split("\n\n") if quotable.isdisjoint(word_runs(p)))


def word_runs(text: str) -> Iterator[tuple[str, ...]]:
    """Yield every run of ``QUOTE_WORDS`` words."""
    words = text.split()
    return zip(*(words[i:] for i in range(QUOTE_WORDS)), strict=False)


def write(folder: Path) -> None:
    """Write the three parts as text files."""
    corpus = split_documents(collect_documents())
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "train.txt": END_OF_TEXT.join(corpus.train),
        "validation.txt": END_OF_TEXT.join(corpus.validation),
        "heldout.txt": "\n\n".join(corpus.heldout) + "\n",
    }
    for name, text in parts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    """Write the text to the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Extract the text of tolpack's demo model.")
    parser.add_argument("folder", type=Path, help="folder to write")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
