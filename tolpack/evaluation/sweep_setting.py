"""Settings of packs to be compared, and the grids that name them on the command line.

``"rank=none,50%,auto bits=4,auto"`` is every rank with every number of bits. Where one value has
commas itself, it has plus signs here: ``drop=3+7-9``. A semicolon begins another grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product

from tolpack.compress.settings import BuildSettings
from tolpack.errors import ConfigError

_KEYS = ("rank", "bits", "drop", "size", "max-ppl-increase")


@dataclass(frozen=True, slots=True)
class SweepSetting:
    """What ``tolpack build`` is told; the fields are its options."""

    rank: str = "none"
    bits: int | str = 4
    drop: str = "none"
    size: str | None = None
    max_ppl_increase: str | None = None

    @property
    def label(self) -> str:
        """The setting in words: rank and bits, the others if they are given."""
        words = [f"rank {self.rank}", f"bits {self.bits}"]
        words += [] if self.drop == "none" else [f"drop {self.drop}"]
        words += [f"size {self.size}"] if self.size is not None else []
        words += [] if self.max_ppl_increase is None else [f"increase {self.max_ppl_increase}"]
        return ", ".join(words)

    @property
    def short(self) -> str:
        """The setting in few words, for pictures."""
        words = ["entropy-coded" if self.bits == "auto" else f"{self.bits} bits"]
        ranks = {"none": [], "auto": ["by loss"]}
        words += ranks.get(self.rank, [f"rank {self.rank}"])
        words += [] if self.drop == "none" else [f"drop {self.drop}"]
        words += [] if self.max_ppl_increase is None else [f"≤ {self.max_ppl_increase}"]
        if self.size is not None:
            exact = self.size.isdigit()
            words.append(f"≤ {int(self.size) / 1e6:.1f} MB" if exact else f"≤ {self.size}")
        return ", ".join(words)

    @property
    def options(self) -> str:
        """The options that make ``tolpack build`` build it."""
        given = {"rank": self.rank, "bits": self.bits, "drop": self.drop, "size": self.size,
                 "max-ppl-increase": self.max_ppl_increase}  # fmt: skip
        plain = SweepSetting()
        default = {"rank": plain.rank, "bits": plain.bits, "drop": plain.drop}
        return " ".join(
            f"--{name} {value}"
            for name, value in given.items()
            if value is not None and value != default.get(name)
        )

    @property
    def kind(self) -> str:
        """What takes about the same time to build: losses take most of it."""
        return "by loss" if "auto" in (self.rank, self.bits) else "plain"

    def parsed(self) -> BuildSettings:
        """Return it as a build takes it, or raise `ConfigError`."""
        return BuildSettings.parse(
            self.rank, self.bits, self.drop, self.size, self.max_ppl_increase
        )

    def to_json(self) -> dict[str, str | int | None]:
        """Return plain values for JSON."""
        return asdict(self)


def parse_grids(specs: Sequence[str]) -> tuple[tuple[SweepSetting, ...], tuple[str, ...]]:
    """Parse grids; see the module.

    Returns
    -------
    tuple
        The settings, each once, in order; and a line for each reason why some cannot be built.

    Raises
    ------
    ConfigError
        A grid is not understood, or none of its settings can be built.
    """
    found: dict[SweepSetting, None] = {}
    skipped: dict[str, list[str]] = {}
    for spec in [part for given in specs for part in given.split(";")]:
        usable = False
        for setting in _combinations(spec):
            try:
                setting.parsed()
            except ConfigError as error:
                skipped.setdefault(str(error), []).append(setting.label)
            else:
                found[setting] = None
                usable = True
        if not usable:
            reasons = "; ".join(skipped)
            raise ConfigError(f"--sweep {spec.strip()!r} has no setting to build: {reasons}")
    return tuple(found), tuple(f"{'; '.join(own)}: {why}" for why, own in skipped.items())


def _combinations(spec: str) -> list[SweepSetting]:
    values: dict[str, list[str]] = {}
    for word in spec.split():
        key, equals, listed = word.partition("=")
        options = [value.replace("+", ",") for value in listed.split(",")]
        if not equals or key not in _KEYS or not all(options):
            raise ConfigError(
                f"--sweep {word!r} is not understood: expected KEY=VALUE,VALUE… with KEY one of "
                f"{', '.join(_KEYS)}"
            )
        if key in values:
            raise ConfigError(f"--sweep names {key} twice: list its values with commas")
        values[key] = options
    if not values:
        raise ConfigError("--sweep is empty: expected e.g. 'rank=none,auto bits=4,8,auto'")
    names = [key.replace("-", "_") for key in values]
    return [_setting(dict(zip(names, one))) for one in product(*values.values())]


def _setting(words: dict[str, str]) -> SweepSetting:
    bits = words.pop("bits", "4")
    if bits not in ("auto", "16", "8", "4"):
        raise ConfigError(f"--sweep bits={bits} is not understood: expected auto, 16, 8 or 4")
    return SweepSetting(bits=bits if bits == "auto" else int(bits), **words)
