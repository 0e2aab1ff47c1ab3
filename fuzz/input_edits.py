"""Changes of files that are not packs: bytes, JSON, what stands behind a length or a checksum."""

from __future__ import annotations

import copy
import io
import json
import random
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

Change = Callable[[bytes, random.Random, Sequence[bytes]], bytes]

_NUMBERS: tuple[Any, ...] = (
    0, 1, 2, -1, 3, 7, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63,
    2**64, 10**30, -(2**63), 0.5, -0.0, 1e308, float("nan"), float("inf"),
)  # fmt: skip
_ATOMS: tuple[Any, ...] = (
    None, True, False, "", "a", "\0", "\x1b[2J", "\u202e", "\ud800", "x" * 600, "[UNK]", "..", "/",
    [], {}, [[]], [1, 2], {"a": 1},
)  # fmt: skip
_PATTERNS = (
    "(a+)+$", "(a|aa)+b", "[", "(?", "(?<=a)", "\\p{L}+", "(a{1000}){1000}", "", ".*", "$^", "\\1",
    "(?R)", "a{2,1}", "(?i)ß", "*.*.*", "{N}", "{N}{N}", "layers.{N}.*",
)  # fmt: skip
_WORDS = tuple(n.to_bytes(size, "little") for size in (1, 2, 4, 8)
               for n in (0, 1, 2, 4, 255, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
               if n < 2 ** (8 * size))  # fmt: skip


def change_bytes(data: bytes, source: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Flip, overwrite, insert, remove or repeat a few bytes, or join two files."""
    if not data:
        return source.randbytes(16)
    # Headers come first, so changes there are the more telling ones.
    at = source.randrange(len(data) if source.random() < 0.5 else min(len(data), 512))
    size, word = source.choice((1, 1, 2, 4, 8, 64)), source.choice(_WORDS)
    other = source.choice(seeds)
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: data[:at] + bytes([data[at] ^ 1 << source.randrange(8)]) + data[at + 1 :],
        lambda: data[:at] + source.randbytes(size) + data[at + size :],
        lambda: data[:at] + word + data[at + len(word) :],
        lambda: data[:at] + source.randbytes(size) + data[at:],
        lambda: data[:at] + data[at + size :],
        lambda: data[:at] + data[at : at + size] * source.choice((2, 3, 50)) + data[at + size :],
        lambda: data[:at],
        lambda: data[:at] + other[source.randrange(len(other) + 1) :],
    )
    return source.choice(kinds)()


def change_json(data: bytes, source: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change a place of a JSON file, or its text where it is none."""
    try:
        value = json.loads(data)
        changed = json.dumps(_changed(value, source, json.loads(source.choice(seeds))))
    except (ValueError, RecursionError):
        return change_bytes(data, source, seeds)
    if source.random() < 0.05:  # a key that stands twice
        key = source.choice(list(value) or ["a"]) if isinstance(value, dict) else "a"
        changed = changed[:-1] + f", {json.dumps(key)}: {json.dumps(source.choice(_ATOMS))}}}"
    return changed.encode("utf-8", "surrogatepass")


def change_safetensors(data: bytes, source: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change the JSON header of a ``.safetensors``, and mostly its length with it."""
    length = int.from_bytes(data[:8], "little")
    heads = [seed[8 : 8 + int.from_bytes(seed[:8], "little")] for seed in seeds]
    header = change_json(data[8 : 8 + length], source, heads)
    written = (
        len(header) if source.random() < 0.95 else source.choice((0, length, 2**40, 2**64 - 1))
    )
    return written.to_bytes(8, "little") + header + data[8 + length :]


def change_npy(data: bytes, source: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change words of the header of a ``.npy``, and its length with it."""
    header = data[10 : 10 + int.from_bytes(data[8:10], "little")]
    old = source.choice(
        (b"False", b"'<f4'", b"(", b",", b"descr", b"shape", b"}", b"'", b"3", b"4")
    )
    new = source.choice((
        b"True", b"'>f4'", b"'|O'", b"[('a','<f4')]", b"'<f8'", b"'|S3'", b"(", b"((", b")",
        b"1" * 30,
        b"99999999999", b"-1", b"1e9", b"None", b"__import__('os')", b"f'{1}'", b"'", b"{", b"3L",
        b"[" * 300, b"-" * 3000, b"\\N{", b"\0", b"\xff", b" " * 70000, b"0", b"",
    ))  # fmt: skip
    header = header.replace(old, new, source.choice((1, 1, 9)))
    written = len(header) if source.random() < 0.95 else source.randrange(1 << 16)
    return data[:8] + (written % (1 << 16)).to_bytes(2, "little") + header + data[len(data) - 48 :]


def change_zip(data: bytes, source: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change an entry of a ZIP behind its checksum, or write the archive otherwise."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except Exception:  # noqa: BLE001 (an earlier change left no archive)
        return change_bytes(data, source, seeds)
    at = 0 if source.random() < 0.7 else source.randrange(len(entries))
    name, content = entries[at]
    entries[at] = (name, change_bytes(content, source, [content]))
    if source.random() < 0.05:
        entries.append(source.choice(entries))
    method = zipfile.ZIP_DEFLATED if source.random() < 0.05 else zipfile.ZIP_STORED
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return out.getvalue()


def change_words(data: bytes, source: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Put a pattern, a number or a piece of another file in place of a word of a text."""
    words = data.decode("latin-1").split(" ")
    other = source.choice(seeds).decode("latin-1").split(" ")
    new = source.choice((*_PATTERNS, "[" * 200, "a." * 500, '"', "=", "[[x]]", "true", "9" * 400,
                         source.choice(other), source.choice(other)))  # fmt: skip
    words[source.randrange(len(words))] = source.choice((new, json.dumps(new)))
    return " ".join(words).encode("latin-1", "replace")


def _changed(value: Any, source: random.Random, other: Any) -> Any:
    """Return a JSON value with one place of it changed."""
    value = copy.deepcopy(value)
    spots, others = list(_spots(value)), list(_spots(other))
    if not spots:
        return source.choice(_ATOMS)
    holder, key = source.choice(spots)
    there, place = source.choice(others or spots)
    kind = source.randrange(7)
    if kind == 0:
        holder[key] = source.choice(_NUMBERS)
    elif kind == 1:
        holder[key] = source.choice(_ATOMS)
    elif kind == 2:
        holder[key] = copy.deepcopy(there[place])
    elif kind == 3:
        del holder[key]
    elif kind == 4 and isinstance(holder, list):
        holder[key:key] = [copy.deepcopy(holder[key])] * source.choice((1, 2, 100))
    elif kind == 4:
        holder[str(source.choice((place, *_ATOMS)))] = copy.deepcopy(there[place])
    elif kind == 5:
        for _ in range(source.choice((1, 3, 70))):
            holder[key] = [holder[key]]
    else:
        holder[key] = source.choice(_PATTERNS)
    return value


def _spots(value: Any) -> Any:
    """Yield (container, key) of everything inside a JSON value."""
    if not isinstance(value, (dict, list)):
        return
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        yield from _spots(value[key])
