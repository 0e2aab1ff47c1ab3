"""What a pack that is planned says of its making: `tolpack.container.provenance`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch

from tolpack.calibration.calibrate import CalibrationStats
from tolpack.compress.settings import BuildSettings, parse_size
from tolpack.container.provenance import Provenance, Setting, StoredWeights
from tolpack.runtime.number_ranges import format_ranges
from tolpack.sources.protocol import TableSource
from tolpack.sources.table_digests import digest_room, table_digests

# Most bytes of JSON without digests and numbers of layers, of the digest of an input with its name,
# of a layer's number, and of what a search measures.
_ROOM, _DIGEST_ROOM, _LAYER_ROOM, _MEASURED_ROOM = 400, 112, 12, 192


def provenance_of(
    sources: Sequence[TableSource], stats: Sequence[CalibrationStats], settings: BuildSettings
) -> Provenance:
    """Return what a pack of tables with `stats` is made from under `settings`."""
    texts = [one.text for one in stats if one.text is not None]
    tokenizers = [one.tokenizer for one in stats if one.tokenizer is not None]
    counts = [one.frequencies for one in stats if one.frequencies is not None]
    return replace(
        replaced_by_pack(sources),
        checkpoint=table_digests(sources),
        options=_options(settings, sources),
        calibration=texts[0] if texts else None,
        tokenizer=tokenizers[0] if tokenizers else None,
        frequencies=_joined(counts),
    )


def longest_text(provenance: Provenance) -> str:
    """Return it as long as it may become, with what a search is about to measure."""
    if "auto" not in (provenance.options.get("bits"), provenance.options.get("rank")):
        return provenance.to_text()
    return replace(provenance, measured={"x" * _MEASURED_ROOM: 0}).to_text()


def provenance_room(
    names: Sequence[str],
    layers: int,
    known: Provenance | None = None,
    *,
    measured: bool = False,
) -> int:
    """Return the most bytes of a header that provenance takes with fixed or lossless bits: of
    tables `names` with so many layers in all. `known` says which other inputs there are;
    `measured`: whether the pack's cost is measured.
    """
    inputs = () if known is None else (known.calibration, known.tokenizer, known.frequencies)
    digests = _DIGEST_ROOM * sum(one is not None for one in inputs)
    room = _ROOM + digest_room(names) + digests + _LAYER_ROOM * layers
    return room + _MEASURED_ROOM * measured


def replaced_by_pack(sources: Sequence[TableSource]) -> Provenance:
    """Return the weights that a pack of all tables stands for, if of every table there are any."""
    weights = _replaced_weights(sources)
    if any(one.ffn_bytes is not None for one in sources):
        return Provenance(memory_ffns=weights)
    return Provenance(stored_table=weights)


def _replaced_weights(sources: Sequence[TableSource]) -> StoredWeights | None:
    found = [one.replaced for one in sources]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    dtypes = dict.fromkeys(name for one in known for name in one.dtype.split(", "))
    return StoredWeights(
        sum(one.parameters for one in known), sum(one.bytes for one in known), ", ".join(dtypes)
    )


def _joined(digests: Sequence[str]) -> str | None:
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _options(settings: BuildSettings, sources: Sequence[TableSource]) -> dict[str, Setting]:
    """Return the options that decide bytes, in words that a build takes; defaults are left out,
    but for the bits.
    """
    rank, drop = _rank(settings), _drop(settings)
    found: dict[str, Setting] = {"bits": str(settings.bits)}
    if rank != "none":
        found["rank"] = rank
    if drop != "none":
        found["drop"] = drop
    if settings.size is not None:
        found["size"] = _size(settings.size)
    for key in ("max_ppl_increase", "max_relative_error"):
        percent = getattr(settings, key)
        if percent is not None:
            found[key] = f"{percent:g}%"
    if settings.max_kld is not None:
        found["max_kld"] = settings.max_kld
    if settings.compression != "auto":
        found["compression"] = settings.compression
    if settings.trellis:
        found["trellis"] = True
    if any(one.compute is torch.bfloat16 for one in sources):
        found["compute"] = "bfloat16"
    return found


def _rank(settings: BuildSettings) -> str:
    ranks = settings.ranks
    if ranks.percent is not None:
        return f"{ranks.percent:g}%"
    return ranks.word or ",".join(map(str, ranks.values))


def _drop(settings: BuildSettings) -> str:
    drop = settings.drop
    if drop.auto:
        return "auto" if drop.most is None else f"auto:{drop.most}"
    return format_ranges(drop.layers) if drop.layers else "none"


def _size(size: str | int) -> str | int:
    """Return a share in percent, or a number of bytes."""
    text = str(size).strip()
    return f"{float(text[:-1]):g}%" if text.endswith("%") else parse_size(size, 0)
