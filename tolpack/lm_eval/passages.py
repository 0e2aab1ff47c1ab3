"""Passages of a text, and the questions that tasks ask about them.

A passage is a run of whole sentences, cut from the text as it stands. Passages do not overlap.
Which of them become questions, and in which order, follows from a hash of a seed and the passage
alone. So questions depend on no model, no tokenizer and no random number generator, and the first
N of them are a sample of the text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

# About as long as LAMBADA's, which have 75 words: well inside a window of 256 tokens.
MIN_WORDS, MAX_WORDS = 50, 100
MIN_CONTEXT_WORDS = 30
# So many words end a passage in the choice of endings.
ENDING_WORDS = 5
CHOICES = 4
# Shorter words are mostly abbreviations ("Mr.") at the end, and "the" or "of" before it.
_LETTERS = 4
_MARKS = ".,;:!?…\"'“”‘’()[]«»—–-"
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]»]*(?=\s+[^\sa-z])")
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class NextWord:
    """The first words of a passage, and the word that follows them.

    ``repeated``: whether the word also stands in the context, whatever its case.
    """

    context: str
    word: str
    repeated: bool


@dataclass(frozen=True, slots=True)
class Endings:
    """A passage up to its last words, and endings of which number ``label`` is its own."""

    context: str
    endings: tuple[str, ...]
    label: int


def passages(text: str, seed: int) -> list[str]:
    """Return the passages of `text`, each once, in the order of a hash of `seed` and passage."""

    def order(passage: str) -> bytes:
        return hashlib.blake2b(f"{seed}\n{passage}".encode()).digest()

    return sorted(dict.fromkeys(_passages_in_order(text)), key=order)


def last_word(passage: str) -> NextWord | None:
    """Ask for the last word of a passage; ``None`` if it does not end in a word of letters.

    Marks after the word are left out.
    """
    *_, last = _WORD.finditer(passage)
    return _next_word(passage, last)


def late_word(passage: str, *, repeated: bool) -> NextWord | None:
    """Ask for the last word that stands earlier too, or that does not; ``None`` without one.

    It has at least `MIN_CONTEXT_WORDS` words before it.
    """
    words = list(_WORD.finditer(passage))
    for word in reversed(words[MIN_CONTEXT_WORDS:]):
        asked = _next_word(passage, word)
        if asked is not None and asked.repeated == repeated:
            return asked
    return None


def endings(ordered: list[str]) -> list[Endings]:
    """Ask for the ending of each passage among those of the next three in the list.

    The right one stands at the places 0 … 3 in turn. Every ending is thus a wrong one three times,
    and the endings alone tell nothing.
    """
    contexts: dict[str, str] = {}
    for context, ending in filter(None, map(_split_ending, ordered)):
        contexts.setdefault(ending, context)
    distinct = list(contexts)
    asked = []
    for n, (right, context) in enumerate(contexts.items()):
        choices = [distinct[(n + k) % len(distinct)] for k in range(1, CHOICES)]
        label = n % CHOICES
        choices.insert(label, right)
        asked.append(Endings(context, tuple(choices), label))
    return asked


def _passages_in_order(text: str) -> Iterator[str]:
    start = 0
    for match in _SENTENCE_END.finditer(text):
        words = len(text[start : match.end()].split())
        if words < MIN_WORDS:
            continue
        if words <= MAX_WORDS:
            yield text[start : match.end()].strip()
        start = match.end()


def _next_word(passage: str, match: re.Match[str]) -> NextWord | None:
    """Ask for a word of four letters or more, and nothing else, with a single space before it."""
    context, word = passage[: match.start() - 1], match[0].rstrip(_MARKS)
    spaced = passage[match.start() - 1] == " " and context == context.rstrip()
    if not spaced or len(word) < _LETTERS or not word.isalpha():
        return None
    words = (one.strip(_MARKS).casefold() for one in context.split())
    return NextWord(context, word, word.casefold() in set(words))


def _split_ending(passage: str) -> tuple[str, str] | None:
    """Split off the last words; ``None`` unless a single space is before them."""
    start = [word.start() for word in _WORD.finditer(passage)][-ENDING_WORDS]
    context = passage[: start - 1]
    if passage[start - 1] != " " or context != context.rstrip():
        return None
    return context, passage[start:]
