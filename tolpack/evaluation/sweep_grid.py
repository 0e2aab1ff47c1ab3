"""Options of packs, and the grids that list many of them on the command line.

``"rank=none,50%,auto bits=4,auto"`` is every rank with every number of bits. A value that has
commas itself is written with plus signs: ``drop=3+7-9``. A semicolon begins another grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product

from tolpack.compress.settings import BuildSettings
from tolpack.errors import ConfigError

_KEYS = ("rank", "bits", "drop", "size", "max-ppl-increase", "max-kld", "trellis")


@dataclass(frozen=True, slots=True)
class PackOptions:
    """Options of ``tolpack build`` that decide the bytes of a pack, as they are typed."""

    rank: str = "none"
    bits: int | str = 4
    drop: str = "none"
    size: str | None = None
    max_ppl_increase: str | None = None
    max_kld: str | None = None
    trellis: bool = False

    @property
    def label(self) -> str:
        """Rank and bits in words, and the others if they are given."""
        words = [f"rank {self.rank}", f"bits {self.bits}"]
        words += [] if self.drop == "none" else [f"drop {self.drop}"]
        words += [f"size {self.size}"] if self.size is not None else []
        words += [] if self.max_ppl_increase is None else [f"increase {self.max_ppl_increase}"]
        words += [] if self.max_kld is None else [f"KL {self.max_kld}"]
        words += ["trellis"] if self.trellis else []
        return ", ".join(words)

    @property
    def short_label(self) -> str:
        """The options in few words, for pictures."""
        words = ["entropy-coded" if self.bits == "auto" else f"{self.bits} bits"]
        ranks = {"none": [], "auto": ["by loss"]}
        words += ranks.get(self.rank, [f"rank {self.rank}"])
        words += [] if self.drop == "none" else [f"drop {self.drop}"]
        words += ["trellis"] if self.trellis else []
        words += [] if self.max_ppl_increase is None else [f"≤ {self.max_ppl_increase}"]
        words += [] if self.max_kld is None else [f"≤ {self.max_kld} nats"]
        if self.size is not None:
            exact = self.size.isdigit()
            words.append(f"≤ {int(self.size) / 1e6:.1f} MB" if exact else f"≤ {self.size}")
        return ", ".join(words)

    @property
    def arguments(self) -> str:
        """Arguments of ``tolpack build``, without those that are its defaults; the defaults
        themselves are named.
        """
        given = {"rank": self.rank, "bits": self.bits, "drop": self.drop, "size": self.size,
                 "max-ppl-increase": self.max_ppl_increase, "max-kld": self.max_kld}  # fmt: skip
        unset = PackOptions()
        defaults = {"rank": unset.rank, "bits": unset.bits, "drop": unset.drop}
        words = [
            f"--{name} {value}"
            for name, value in given.items()
            if value is not None and value != defaults.get(name)
        ]
        words += ["--trellis"] if self.trellis else []
        return " ".join(words) or f"--rank {self.rank} --bits {self.bits}"

    def build_settings(self) -> BuildSettings:
        """Parse the options, or raise `ConfigError`."""
        return BuildSettings.parse(
            self.rank,
            self.bits,
            self.drop,
            self.size,
            self.max_ppl_increase,
            max_kld=self.max_kld,
            trellis=self.trellis,
        )

    def to_json(self) -> dict[str, str | int | None]:
        """Return plain values for JSON."""
        return asdict(self)


def parse_grids(specs: Sequence[str]) -> tuple[tuple[PackOptions, ...], tuple[str, ...]]:
    """Parse grids; see the module.

    Returns
    -------
    tuple
        The options, each once, in order; and a line for each reason why some cannot be built.

    Raises
    ------
    ConfigError
        A grid is not understood, or nothing in it can be built.
    """
    usable: dict[PackOptions, None] = {}
    skipped: dict[str, list[str]] = {}
    for spec in [part for given in specs for part in given.split(";")]:
        any_usable = False
        for options in _combinations(spec):
            try:
                options.build_settings()
            except ConfigError as error:
                skipped.setdefault(str(error), []).append(options.label)
            else:
                usable[options] = None
                any_usable = True
        if not any_usable:
            reasons = "; ".join(skipped)
            raise ConfigError(f"--sweep {spec.strip()!r} has no setting to build: {reasons}")
    return tuple(usable), tuple(f"{'; '.join(own)}: {why}" for why, own in skipped.items())


def _combinations(spec: str) -> list[PackOptions]:
    values: dict[str, list[str]] = {}
    for word in spec.split():
        key, equals, listed = word.partition("=")
        choices = [value.replace("+", ",") for value in listed.split(",")]
        if not equals or key not in _KEYS or not all(choices):
            raise ConfigError(
                f"--sweep {word!r} is not understood: expected KEY=VALUE,VALUE… with KEY one of "
                f"{', '.join(_KEYS)}"
            )
        if key in values:
            raise ConfigError(f"--sweep names {key} twice: list its values with commas")
        values[key] = choices
    if not values:
        raise ConfigError("--sweep is empty: expected e.g. 'rank=none,auto bits=4,8,auto'")
    names = [key.replace("-", "_") for key in values]
    return [_options(dict(zip(names, one))) for one in product(*values.values())]


def _options(words: dict[str, str]) -> PackOptions:
    bits = words.pop("bits", "4")
    if bits not in ("auto", "16", "8", "4"):
        raise ConfigError(f"--sweep bits={bits} is not understood: expected auto, 16, 8 or 4")
    trellis = words.pop("trellis", "no")
    if trellis not in ("yes", "no"):
        raise ConfigError(f"--sweep trellis={trellis} is not understood: expected yes or no")
    number = bits if bits == "auto" else int(bits)
    return PackOptions(bits=number, trellis=trellis == "yes", **words)
