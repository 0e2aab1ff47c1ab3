"""Settings of a build, parsed from the command line's words or from Python values.

Ranks, dropped layers and sizes are kept as small values that know nothing of a model yet;
`Ranks.for_layers` and `dropped_fields` hold them against one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tolpack.errors import ConfigError
from tolpack.runtime.number_ranges import parse_ranges
from tolpack.runtime.sizes import in_range, parse_bytes

# What --bits auto alone may cost on the held-out part of the calibration text: nats of KL
# divergence from the model's own predictions. On text drawn from the model itself that is an
# increase of perplexity by 0.2 %.
DEFAULT_KLD = 0.002
# With --bits auto: layers above each one that compensate for its errors (docs/lab-notes.md: with
# one, packs are 4 % larger; with all, 1 % smaller).
COMPENSATION_REACH = 2
# Choices of --bits.
BITS = ("auto", "lossless", "16", "8", "4")
# Whether frames of cold rows are entropy-coded where that pays.
COMPRESSIONS = ("auto", "none")
# Preamble and header of a pack of one row take about as much.
_LEAST_BYTES = 512
_RANK_FORMS = "auto, full, none, an integer, a percentage like 50%, or one integer per layer"


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ``--rank`` setting: one of the words, a number, a percentage, or a list."""

    word: str | None = None
    percent: float | None = None
    values: tuple[int, ...] = ()

    def for_layers(self, num_layers: int, full: int) -> tuple[int | None, ...] | None:
        """Return each layer's rank (``None``: no basis), or ``None`` for ``auto``.

        Parameters
        ----------
        num_layers : int
            Layers of the model.
        full : int
            Largest rank: ``min(hidden_size, vocab_size)``.

        Raises
        ------
        ConfigError
            A rank outside ``1 … full``, or a list of another length.
        """
        if self.word is not None:
            return {"none": (None,) * num_layers, "full": (full,) * num_layers}.get(self.word)
        if self.percent is not None:
            return (max(1, round(full * self.percent / 100)),) * num_layers
        values = self.values * num_layers if len(self.values) == 1 else self.values
        if len(values) != num_layers:
            raise ConfigError(
                f"--rank lists {len(values)} ranks, but there are {num_layers} layers"
            )
        wrong = [value for value in values if not 1 <= value <= full]
        if wrong:
            raise ConfigError(
                f"--rank {wrong[0]} is outside 1 … {full} (min of hidden_size and vocab_size)"
                + ("; to leave a layer out, use --drop" if wrong[0] == 0 else "")
            )
        return tuple(values)


def parse_rank(value: str | int) -> Ranks:
    """Parse ``auto|full|none|INT|PERCENT%|r0,r1,…``."""
    text = str(value).strip().lower()
    if text in ("auto", "full", "none"):
        return Ranks(word=text)
    if re.fullmatch(r"\d+(\.\d+)?%", text):
        percent = float(text[:-1])
        if not 0 < percent <= 100:
            raise ConfigError(f"--rank {value} is outside 0% … 100%")
        return Ranks(percent=percent)
    if re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        return Ranks(values=tuple(int(part) for part in text.split(",")))
    raise ConfigError(f"--rank {value!r} is not understood: expected {_RANK_FORMS}")


@dataclass(frozen=True, slots=True)
class Drop:
    """The ``--drop`` setting: layers, or ``auto``, with or without a number of them (``most``)."""

    layers: tuple[int, ...] = ()
    auto: bool = False
    most: int | None = None


def parse_bits(word: str) -> int | str:
    """Return a choice of `BITS` as the setting: a number where it is one."""
    return int(word) if word.isdigit() else word


def parse_drops(value: str) -> Drop:
    """Parse ``none``, ``auto``, ``auto:N``, or layers as `parse_drop`."""
    match = re.fullmatch(r"auto(?::(\d{1,4}))?", value.strip().lower())
    if match is None:
        return Drop(parse_drop(value, "none, auto, auto:2 or 3,7-9"))
    return Drop(auto=True, most=None if match[1] is None else int(match[1]))


def parse_drop(value: str, expected: str = "none or 3,7-9") -> tuple[int, ...]:
    """Parse ``none`` or layer numbers and ranges like ``3,7-9``: ascending, each once."""
    if value.strip().lower() == "none":
        return ()
    return parse_ranges(value, "--drop", expected)


def parse_size(value: str | int, full_bytes: int) -> int:
    """Parse ``800MB`` (bytes, decimal or binary units) or ``12%`` of `full_bytes`.

    Parameters
    ----------
    value : str or int
        The setting; an integer is a number of bytes.
    full_bytes : int
        Bytes of the FP16 table of all layers.
    """
    text = str(value).strip()
    if re.fullmatch(r"\d+(\.\d+)?\s*%", text):
        return in_range(float(text[:-1]) * full_bytes / 100, text, "--size")
    return parse_bytes(value, "--size", "800MB or 12%")


def check_size(value: str | int) -> None:
    """Raise `ConfigError` if `parse_size` does, or no pack is so small: a unit was left out."""
    size = parse_size(value, 100 * _LEAST_BYTES)
    if size < _LEAST_BYTES and "%" not in str(value):
        share = f", or a percentage of the FP16 table, like {size}%" if size <= 100 else ""
        raise ConfigError(
            f"--size {str(value).strip()} is {size} bytes, and no pack is so small: give a unit, "
            f"like {size}MB{share}"
        )


def parse_increase(value: str | float) -> float:
    """Parse ``1%``, ``0.25 %`` or a number of percent: the perplexity that may be lost."""
    return parse_percent(value, "--max-ppl-increase")


def parse_kld(value: str | float) -> float:
    """Parse a number of nats: the mean KL divergence from the model's own predictions."""
    text = str(value).strip()
    match = re.fullmatch(r"((?:\d+(?:\.\d*)?|\.\d+)(?:e-?\d{1,2})?)(?:\s*nats?)?", text.lower())
    if match is None:
        raise ConfigError(f"--max-kld {value!r} is not understood: expected nats, e.g. 0.002")
    nats = float(match[1])
    if not 1e-7 <= nats <= 10:
        raise ConfigError(f"--max-kld {value} is outside 0.0000001 … 10 nats")
    return nats


def parse_relative_error(value: str | float) -> float:
    """Parse a number of percent: the relative error that rows may have."""
    return parse_percent(value, "--max-relative-error")


def parse_percent(value: str | float, option: str) -> float:
    """Parse ``1%``, ``0.25 %`` or a number of percent, the value of `option`."""
    text = str(value).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*%?", text)
    if match is None:
        raise ConfigError(f"{option} {value!r} is not understood: expected e.g. 1%")
    percent = float(match[1])
    if not 0.001 <= percent <= 1000:
        raise ConfigError(f"{option} {value} is outside 0.001% … 1000%")
    return percent


def _check_limits(bits: int | str, limits: Mapping[str, object]) -> None:
    """Refuse more than one limit, and limits of a loss without ``--bits auto``."""
    given = [option for option, value in limits.items() if value is not None]
    for option in given:
        if option != "--size" and bits != "auto":
            raise ConfigError(f"{option} chooses the bits, so it needs --bits auto")
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} each decide the size: give one")


def dropped_fields(drop: tuple[int, ...], layers: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of the fields that the layers `drop` read, given the layer of each field.

    Raises
    ------
    ConfigError
        A layer reads no field, or all fields are dropped.
    """
    missing = sorted(set(drop) - set(layers))
    if missing:
        known = ", ".join(map(str, sorted(set(layers))))
        if sorted(set(layers)) == list(range(max(layers) + 1)):
            known = f"0 … {max(layers)}"
        raise ConfigError(f"--drop {missing[-1]} is out of range {known} (layers): leave it out")
    if set(drop) == set(layers):
        raise ConfigError("--drop names every layer: keep at least one")
    return tuple(number for number, layer in enumerate(layers) if layer in drop)


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """Settings that decide the bytes of a pack, beside the table and its token statistics.

    ``trellis`` is not in the representation: keys of packs without one do not depend on it.
    """

    ranks: Ranks
    bits: int | str
    drop: Drop
    size: str | int | None
    max_ppl_increase: float | None
    compression: str = "auto"
    max_relative_error: float | None = None
    max_kld: float | None = None
    trellis: bool = field(default=False, repr=False)

    @classmethod
    def parse(
        cls,
        rank: str | int,
        bits: int | str,
        drop: str,
        size: str | int | None,
        max_ppl_increase: str | float | None,
        compression: str = "auto",
        max_relative_error: str | float | None = None,
        max_kld: str | float | None = None,
        trellis: bool = False,
    ) -> BuildSettings:
        """Parse the settings, or raise `ConfigError`."""
        if bits not in ("auto", "lossless") and (type(bits) is not int or bits not in (16, 8, 4)):
            raise ConfigError(f"--bits is {bits}, expected auto, lossless, 16, 8 or 4")
        if compression not in COMPRESSIONS:
            raise ConfigError(f"--compression is {compression!r}, expected auto or none")
        ranks = parse_rank(rank)
        if bits == "lossless" and ranks.word != "none":
            raise ConfigError(
                "--bits lossless keeps every bit, so it has no basis: use --rank none"
            )
        if bits == "auto" and compression == "none":
            raise ConfigError("--bits auto is entropy coding, so it has no --compression none")
        if size is not None and bits != "auto" and ranks.word != "auto":
            raise ConfigError("--size chooses ranks or bits: it needs --rank auto or --bits auto")
        if size is not None:
            check_size(size)
        increase = None if max_ppl_increase is None else parse_increase(max_ppl_increase)
        error = None if max_relative_error is None else parse_relative_error(max_relative_error)
        kld = None if max_kld is None else parse_kld(max_kld)
        limits = {"--max-kld": kld, "--max-ppl-increase": increase, "--max-relative-error": error}
        _check_limits(bits, {**limits, "--size": size})
        drops = parse_drops(drop)
        if drops.auto and bits != "auto":
            raise ConfigError(
                "--drop auto weighs layers against bits, so it needs --bits auto; or name layers"
            )
        if trellis and bits != "auto":
            raise ConfigError("--trellis chooses entropy-coded codes, so it needs --bits auto")
        return cls(ranks, bits, drops, size, increase, compression, error, kld, trellis)

    @property
    def has_matrices(self) -> bool:
        """Whether matrices of a layer's width are worked out: for bases, or under metrics."""
        return self.ranks.word != "none"

    @property
    def loss_reach(self) -> int | None:
        """How many layers above each one its losses are measured together with; ``None`` where no
        losses are needed.
        """
        if self.bits == "auto":
            return COMPENSATION_REACH
        return 0 if self.ranks.word == "auto" else None
