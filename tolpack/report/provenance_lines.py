"""What a pack was made from, in lines, and its size beside the weights that it replaces."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from decimal import Decimal

from tolpack.container.provenance import Provenance, Setting, StoredWeights
from tolpack.errors import printable
from tolpack.runtime.sizes import format_bytes

# Losses that a build measures, their standard errors, and what they are in words.
_LOSSES = (
    ("kl_mean_nats", "kl_mean_se_nats", "nats of mean KL divergence from the model"),
    ("ppl_increase_pct", "ppl_increase_se_pct", "% more perplexity"),
)
# Sizes whose ratio is nearer to 1 are said to be about the same.
_SAME = 0.005


def made_from_lines(made_from: Provenance) -> list[str]:
    """Return lines that say what a pack was made from, and how; none if nothing is known."""
    lines = []
    for name, digest in made_from.checkpoint.items():
        lines.append(f"  checkpoint: SHA-256 {digest} (table {printable(name)})")
    if made_from.options:
        lines.append(f"  options: {printable(option_words(made_from.options))}")
    text = made_from.calibration
    if text is not None:
        of = "sampled from the model" if text.sha256 is None else f"SHA-256 {text.sha256}"
        lines.append(f"  calibration text: {text.tokens:,} tokens, {of}")
    if made_from.tokenizer is not None:
        lines.append(f"  tokenizer: SHA-256 {made_from.tokenizer}")
    if made_from.frequencies is not None:
        lines.append(f"  frequencies: SHA-256 {made_from.frequencies}")
    if made_from.measured:
        lines.append(f"  cost, measured at the build: {measured_words(made_from.measured)}")
    if made_from.edited:
        lines.append("  edited: rows were replaced since")
    return ["made from:", *lines] if lines else []


def option_words(options: Mapping[str, Setting]) -> str:
    """Write options as a command line takes them."""
    words = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        words.append(option if value is True else f"{option} {shlex.quote(str(value))}")
    return " ".join(words)


def measured_words(measured: Mapping[str, Setting]) -> str:
    """Write what a build measured: ``0.00198 ± 3.1e-05 nats of KL divergence on 1,200 tokens``.

    Where a step was searched, a part of the calibration text was held out.
    """
    kind = "held-out tokens" if "step" in measured else "tokens of the calibration text"
    for value, error, unit in _LOSSES:
        if value in measured:
            shown = _decimal(measured[value])
            shown += f" ± {_decimal(measured[error])}" if error in measured else ""
            tokens = measured.get("tokens")
            return f"{shown} {unit}" + (f" on {tokens:,} {kind}" if tokens else "")
    return ", ".join(f"{printable(name)} {value}" for name, value in measured.items())


def _decimal(value: Setting) -> str:
    """Write a number without an exponent, unless it is very small."""
    number = float(value)
    small = number == 0 or not 1e-8 < abs(number) < 1e6
    return f"{number:g}" if small else f"{Decimal(repr(number)):f}"


def beside_weights(size: float, made_from: Provenance) -> str | None:
    """Write a clause on the weights that a pack of `size` bytes replaces; ``None`` if none are
    known.
    """
    ffns, stored = made_from.memory_ffns, made_from.stored_table
    if ffns is not None:
        clause = f"the memory FFNs that it replaces take {_sizes(ffns)}, {_compared(size, ffns)}"
        if size > ffns.bytes:
            count = format_count(ffns.parameters)
            clause += f"; it saves about {count} multiply–accumulates a token"
        return clause
    if stored is None:
        return None
    own = f"{format_bytes(stored.bytes)} as stored ({printable(stored.dtype)})"
    return f"the table takes {own}, so the pack is {times_smaller(stored.bytes, size)} that"


def format_count(count: int) -> str:
    """Write a number with two digits and a word: ``4.7 million``."""
    rounded = float(f"{count:.2g}")
    for unit, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if rounded >= unit:
            return f"{rounded / unit:g} {word}"
    return f"{rounded:,.0f}"


def times_smaller(other: float, size: float) -> str:
    """Write how much smaller or larger `size` is than another: ``× 1.04 smaller than``."""
    ratio = other / size
    if abs(math.log(ratio)) < _SAME:
        return "about as large as"
    return f"× {ratio:.2f} smaller than" if ratio > 1 else f"× {1 / ratio:.2f} larger than"


def _sizes(weights: StoredWeights) -> str:
    text = f"{format_bytes(weights.bytes)} as stored ({printable(weights.dtype)})"
    if weights.bytes == weights.bytes_16:
        return text
    return f"{text} and {format_bytes(weights.bytes_16)} in 16 bits"


def _compared(size: float, weights: StoredWeights) -> str:
    text = f"so the pack is {times_smaller(weights.bytes, size)} they are"
    if weights.bytes == weights.bytes_16:
        return text
    return f"{text}, and {times_smaller(weights.bytes_16, size)} they would be in 16 bits"
