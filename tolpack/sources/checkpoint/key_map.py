"""Key maps: from the names of tensors in a checkpoint to those of the schema.

A map is a TOML file; the built-in ones (`maps/`) are files of the same form, so a user's own map
may begin as a copy of one::

    rope_interleaved = true            # optional: what these names imply for rotary embeddings
    ignore = ["blocks.{N}.router.*"]   # optional: tensors to leave out

    [tensors]                          # name in the checkpoint = name in the schema
    "wte.weight" = "embed_tokens.weight"
    "blocks.{N}.w12.weight" = ["layers.{N}.memory_mlp.gate_proj.weight",   # fused: the rows of
                               "layers.{N}.memory_mlp.up_proj.weight"]     # one, then the other
    "blocks.{N}.w3.weight" = { to = "layers.{N}.memory_mlp.down_proj.weight", transpose = true }

``{N}`` is a layer number and ``*`` any text. A rule for a ``.weight`` also covers its ``.bias``.
``grouped = true`` says that a fused tensor holds its parts head group by head group. Prefixes that
training wrappers leave (``model.``, ``module.``, ``_orig_mod.`` …) are taken off before matching.

Matching is strict: a rule of a user's map that matches nothing, two tensors for one place, and
names that no map knows are errors that show the nearest names.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import islice
from typing import Any

from tolpack.errors import CheckpointError, ConfigError
from tolpack.sources.checkpoint.schema import PATTERNS, is_known
from tolpack.storage.inputs import input_path, read_whole
from tolpack.storage.locations import Location

_MAX_BYTES = 256 << 10
_MAX_RULES = 1000
# tomllib takes the square of the parts of a dotted key.
_MAX_DOTS = 250
# Each * more multiplies the time that a long name takes to be matched by its length.
_MAX_STARS = 2
# Names that are looked at for near ones, and their lengths: the search is slow.
_NEAR_NAMES, _NEAR_LENGTH = 2000, 200
BUILT_IN = ("hf-llama", "meta", "lit-gpt", "olmo", "openlm")
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
_LEADING = ("model.", "module.")
_GROUPED = tuple(f"layers.{{N}}.self_attn.{part}_proj.weight" for part in "qkv")
# Buffers that some trainers save; they follow from the configuration.
_BUFFERS = re.compile(r"(^|\.)(inv_freq|freqs|freqs_cis|cos_cached|sin_cached|masked_bias)$")


@dataclass(frozen=True, slots=True)
class Rule:
    """Tensors named like ``source`` hold the schema tensors ``targets``, in the order of rows."""

    source: str
    targets: tuple[str, ...]
    transpose: bool = False
    grouped: bool = False


@dataclass(frozen=True, slots=True)
class KeyMap:
    """The rules of one family of names; ``rope_interleaved`` is ``None`` if they imply nothing.

    ``own`` marks a map that a user wrote for one checkpoint. Every rule of such a map has to match.
    """

    name: str
    rules: tuple[Rule, ...]
    rope_interleaved: bool | None = None
    ignore: tuple[str, ...] = ()
    own: bool = False


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """Where a schema tensor is: in the tensor ``stored``, number ``number`` of ``targets``.

    ``targets`` are the schema tensors that are fused there, in the order of rows; see `Rule`.
    """

    stored: str
    targets: tuple[str, ...]
    number: int
    transpose: bool = False
    grouped: bool = False

    @property
    def fused(self) -> bool:
        """Whether the stored tensor holds others too."""
        return len(self.targets) > 1


@dataclass(frozen=True, slots=True)
class Matches:
    """The result of a map: slices by schema name, and stored names that the map does not know."""

    key_map: KeyMap
    slices: dict[str, TensorSlice]
    unknown: tuple[str, ...]


def match(names: Iterable[str], key_map: KeyMap | None) -> Matches:
    """Match the tensor `names` of a checkpoint, by `key_map` or by the built-in one that fits best.

    Raises
    ------
    CheckpointError
        No map fits, several do, or two tensors claim one place.
    """
    plain = _plain_names(names)
    if key_map is not None:
        found = _apply(key_map, plain)
        _check_own(found, plain)
        return found
    best = _best(plain)
    if best is None:
        raise CheckpointError(
            f"no built-in key map ({', '.join(BUILT_IN)}) knows these tensor names, for example "
            f"{', '.join(sorted(plain)[:3])}: write a map for them and give it with --key-map "
            "(docs/checkpoints.md)"
        )
    return best


def built_in(name: str) -> KeyMap:
    """Return the built-in map `name`, or raise `ConfigError` with the names there are."""
    if name not in BUILT_IN:
        raise ConfigError(f"--map {name!r} is unknown: expected one of {', '.join(BUILT_IN)}")
    text = (resources.files("tolpack.sources.checkpoint") / "maps" / f"{name}.toml").read_text(
        "utf-8"
    )
    return _parse(name, tomllib.loads(text), f"map {name}", own=False)


def read_key_map(path: Location) -> KeyMap:
    """Read a user's map.

    Raises
    ------
    ConfigError
        It is not TOML, or a rule cannot be understood; the message names the rule.
    """
    try:
        text = read_whole(path, _MAX_BYTES).decode("utf-8")
        if any(line.count(".") > _MAX_DOTS for line in text.splitlines()):
            raise ValueError(f"a line has over {_MAX_DOTS} dots: divide it")
        raw = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read --key-map {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--key-map {path} is not valid TOML: {error}") from error
    return _parse(input_path(path).name, raw, f"--key-map {path}", own=True)


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """Say which of `names` are nearest to `name`: ``; nearest names: …``, or nothing."""
    some = [one for one in islice(names, _NEAR_NAMES) if len(one) <= _NEAR_LENGTH]
    close = difflib.get_close_matches(name[:_NEAR_LENGTH], some, count, cutoff=0.5)
    return f"; nearest names: {', '.join(close)}" if close else ""


def _plain_names(names: Iterable[str]) -> dict[str, str]:
    """Map names without wrappers and prefixes to the names as stored."""
    plain: dict[str, str] = {}
    for stored in names:
        short = ".".join(part for part in stored.split(".") if part not in _WRAPPERS)
        while short.startswith(_LEADING):
            short = short.partition(".")[2]
        if short in plain:
            raise CheckpointError(
                f"tensors {plain[short]!r} and {stored!r} are the same but for a prefix: keep one "
                "set of them"
            )
        plain[short] = stored
    return plain


def _best(plain: Mapping[str, str]) -> Matches | None:
    """Apply the built-in map that knows most of the names, if one knows any beside the norm."""
    ranked = []
    for name in BUILT_IN:
        key_map = built_in(name)
        known = sum(1 for short in plain if _rule_of(key_map, short) is not None)
        ranked.append((known, key_map))
    ranked.sort(key=lambda pair: -pair[0])
    (most, best), (second, other) = ranked[:2]
    if most == 0:
        return None
    if most == second:
        raise CheckpointError(
            f"the tensor names fit the key maps {best.name} and {other.name} alike: say which with "
            "--map"
        )
    return _apply(best, plain)


def _apply(key_map: KeyMap, plain: Mapping[str, str]) -> Matches:
    slices: dict[str, TensorSlice] = {}
    unknown = []
    for short, stored in plain.items():
        found = _rule_of(key_map, short)
        if found is None:
            if not _is_ignored(key_map, short):
                unknown.append(stored)
            continue
        rule, layer = found
        bias = short.endswith(".bias") and not rule.source.endswith(".bias")
        names = tuple(target.replace("{N}", layer) for target in rule.targets)
        if bias:
            names = tuple(name.removesuffix("weight") + "bias" for name in names)
        for number, name in enumerate(names):
            if name in slices:
                raise CheckpointError(
                    f"tensors {slices[name].stored!r} and {stored!r} both are {name!r} by key map "
                    f"{key_map.name}: remove one, or choose with --map or --key-map"
                )
            slices[name] = TensorSlice(stored, names, number, rule.transpose, rule.grouped)
    return Matches(key_map, slices, tuple(sorted(unknown)))


def _check_own(found: Matches, plain: Mapping[str, str]) -> None:
    """Refuse rules of a user's map, or a whole built-in one, that matched nothing."""
    key_map = found.key_map
    if not found.slices:
        raise CheckpointError(
            f"key map {key_map.name} matches none of the {len(plain)} tensors"
            f"{nearest(key_map.rules[0].source.replace('{N}', '0'), plain)}: choose another --map, "
            "or write one (docs/checkpoints.md)"
        )
    patterns = [rule.source for rule in key_map.rules] + list(key_map.ignore)
    for pattern in patterns if key_map.own else ():
        if not any(_expression(pattern).fullmatch(short) for short in plain):
            raise CheckpointError(
                f"pattern {pattern!r} of key map {key_map.name} matches no tensor"
                f"{nearest(pattern.replace('{N}', '0'), plain)}: correct it, or remove it"
            )


def _is_ignored(key_map: KeyMap, short: str) -> bool:
    ignored = any(_expression(pattern).fullmatch(short) for pattern in key_map.ignore)
    return ignored or _BUFFERS.search(short) is not None


def _rule_of(key_map: KeyMap, short: str) -> tuple[Rule, str] | None:
    """The rule for a name and its layer number; a rule for a weight also covers the bias."""
    as_weight = short.removesuffix("bias") + "weight" if short.endswith(".bias") else short
    for rule in key_map.rules:
        found = _expression(rule.source).fullmatch(short)
        if found is None and len(rule.targets) == 1:
            found = _expression(rule.source).fullmatch(as_weight)
        if found is not None:
            return rule, found.groupdict().get("layer", "")
    return None


@lru_cache(4096)
def _expression(pattern: str) -> re.Pattern[str]:
    literal = re.escape(pattern).replace(r"\*", ".*")
    first = literal.replace(r"\{N\}", r"(?P<layer>0|[1-9]\d{0,5})", 1)
    return re.compile(first.replace(r"\{N\}", r"(?P=layer)"))


def _parse(name: str, raw: Mapping[str, Any], where: str, *, own: bool) -> KeyMap:
    unknown = sorted(set(raw) - {"rope_interleaved", "ignore", "tensors"})
    if unknown:
        raise ConfigError(
            f"{where} has the unknown entry {unknown[0]!r}: expected rope_interleaved, ignore and "
            "[tensors]"
        )
    tensors, pairs, ignore = raw.get("tensors"), raw.get("rope_interleaved"), raw.get("ignore", [])
    if not isinstance(tensors, dict) or not tensors:
        raise ConfigError(f"{where} has no table [tensors]: see docs/checkpoints.md")
    if not isinstance(pairs, bool | None):
        raise ConfigError(
            f"{where}: rope_interleaved is {reprlib.repr(pairs)}, expected true or false"
        )
    if not isinstance(ignore, list) or not all(isinstance(one, str) for one in ignore):
        raise ConfigError(f"{where}: ignore is {reprlib.repr(ignore)}, expected a list of patterns")
    if len(tensors) + len(ignore) > _MAX_RULES:
        raise ConfigError(f"{where} has over {_MAX_RULES} rules: put {{N}} for layer numbers")
    for pattern in (*tensors, *ignore):
        if pattern.count("*") > _MAX_STARS:
            raise ConfigError(f"{where}: pattern {reprlib.repr(pattern)} has over {_MAX_STARS} *")
    rules = tuple(_rule(source, value, where) for source, value in tensors.items())
    return KeyMap(name, rules, pairs, tuple(ignore), own)


def _rule(source: str, value: Any, where: str) -> Rule:
    options = value if isinstance(value, dict) else {"to": value}
    to = options.get("to")
    targets: list[Any] = to if isinstance(to, list) else [to]
    flags = [options.get(name, False) for name in ("transpose", "grouped")]
    understood = (
        targets
        and all(isinstance(target, str) for target in targets)
        and set(options) <= {"to", "transpose", "grouped"}
        and all(isinstance(flag, bool) for flag in flags)
    )
    if not understood:
        raise ConfigError(
            f"{where}: {source!r} is {reprlib.repr(value)}, expected a schema name, a list of "
            "them, or { to = …, transpose = true, grouped = true }"
        )
    for target in targets:
        _check_target(source, target, where)
    if flags[1] and tuple(targets) != _GROUPED:
        raise ConfigError(
            f"{where}: {source!r} is grouped, but only attention has head groups: expected "
            f"{', '.join(_GROUPED)}, in this order"
        )
    return Rule(source, tuple(targets), *flags)


def _check_target(source: str, target: str, where: str) -> None:
    if not is_known(target):
        raise ConfigError(
            f"{where}: {target!r} is not a name of the schema{nearest(target, PATTERNS)} "
            "(docs/checkpoints.md)"
        )
    if ("{N}" in source) != ("{N}" in target):
        raise ConfigError(
            f"{where}: {{N}} must stand on both sides of {source!r} = {target!r}, or on neither"
        )
