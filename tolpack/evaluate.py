"""Perplexity of packs against the checkpoint they were made from: ``tolpack eval``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import CheckpointError, ConfigError
from tolpack.pack import Pack
from tolpack.progress import Reporter
from tolpack.reference.decoder import Decoder
from tolpack.reference.perplexity import Score, increase_pct, score
from tolpack.reference.text import find_tokenizer, read_token_ids
from tolpack.sources.checkpoint import Reading, open_checkpoint
from tolpack.sources.table import MemoryTable
from tolpack.summary import bits_per_weight, ratio_fp16
from tolpack.torch import ToLMemory


@dataclass(frozen=True, slots=True)
class Baseline:
    """The checkpoint itself: ``nll_nats`` per token, ``ffn_bytes`` of the memory FFNs as stored
    (``None`` for a dense model).
    """

    ppl: float
    ppl_se: float
    nll_nats: float
    tokens: int
    ffn_bytes: int | None


@dataclass(frozen=True, slots=True)
class PackScore:
    """One pack, by the contract of ``tolpack eval --json``.

    ``read_bytes_per_token`` is the mean over the evaluated tokens of what a lookup of that token
    alone asks the file for; ``ppl_increase_se_pct`` is paired window by window.
    """

    path: str
    ppl: float
    ppl_se: float
    nll_nats: float
    tokens: int
    ffn_bytes: int | None
    bytes: int
    ratio_fp16: float
    bits_per_weight: float
    ppl_increase_pct: float
    ppl_increase_se_pct: float
    read_bytes_per_token: float
    resident_bytes: int
    macs_per_token: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What ``tolpack eval`` measured; ``context`` is the window length in tokens."""

    context: int
    baseline: Baseline
    packs: tuple[PackScore, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "context": self.context,
            "baseline": asdict(self.baseline),
            "packs": [asdict(pack) for pack in self.packs],
        }


def evaluate(
    checkpoint: str | Path,
    packs: Sequence[str | Path],
    text: str | Path,
    *,
    tokenizer: str | Path | None = None,
    reading: Reading | None = None,
    context: int | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Score a checkpoint, and packs in place of its memory, on a text.

    Parameters
    ----------
    checkpoint : str or Path
        A MemoryLLM, Flex or (without packs) dense checkpoint.
    packs : sequence of str or Path
        Packs made from it.
    text : str or Path
        UTF-8 text, or ``.npy`` of token ids.
    tokenizer : str or Path, optional
        Where the checkpoint has none beside it.
    reading : Reading, optional
        What the checkpoint does not say itself.
    context : int, optional
        Window length in tokens; default: the model's ``max_position_embeddings``.
    reporter : Reporter, optional
        Receives progress.

    Raises
    ------
    CheckpointError, ConfigError, FormatError, FileAccessError
        An input cannot be used, or a pack does not fit the checkpoint.
    """
    reporter = reporter or Reporter()
    opened = open_checkpoint(checkpoint, reading)
    ffn_bytes = MemoryTable(opened).ffn_bytes if opened.config.has_memory else None
    decoder = Decoder(opened)
    context = context or decoder.config.max_position_embeddings
    if context is None:
        raise ConfigError("the config has no max_position_embeddings: give --context N")
    tokens = read_token_ids(text, opened.config.vocab_size, find_tokenizer(opened.path, tokenizer))
    base = _score(decoder, tokens, context, "baseline", reporter)
    scores = []
    for path in packs:
        with Pack(path) as pack:
            _check_fits(pack, decoder, path)
            memory = ToLMemory(pack)
            packed = _score(decoder.with_memory(memory), tokens, context, Path(path).name, reporter)
            scores.append(_pack_score(path, pack, packed, base, tokens, ffn_bytes))
    baseline = Baseline(base.ppl, base.ppl_se, base.mean_nll_nats, base.total_tokens, ffn_bytes)
    return Evaluation(context, baseline, tuple(scores))


def _score(
    decoder: Decoder, tokens: NDArray[np.int64], context: int, name: str, reporter: Reporter
) -> Score:
    with reporter.phase(name, len(tokens) - 1, "tok") as done:
        return score(decoder, tokens, context, done)


def _pack_score(
    path: str | Path,
    pack: Pack,
    packed: Score,
    base: Score,
    tokens: NDArray[np.int64],
    ffn_bytes: int | None,
) -> PackScore:
    increase, increase_se = increase_pct(packed, base)
    return PackScore(
        path=str(path),
        ppl=packed.ppl,
        ppl_se=packed.ppl_se,
        nll_nats=packed.mean_nll_nats,
        tokens=packed.total_tokens,
        ffn_bytes=ffn_bytes,
        bytes=pack.nbytes,
        ratio_fp16=ratio_fp16(pack),
        bits_per_weight=bits_per_weight(pack),
        ppl_increase_pct=increase,
        ppl_increase_se_pct=increase_se,
        read_bytes_per_token=float(pack.extents(tokens[:-1])[:, 1].mean()),
        resident_bytes=pack.resident_bytes,
        macs_per_token=pack.macs_per_token,
    )


def _check_fits(pack: Pack, decoder: Decoder, path: str | Path) -> None:
    config = decoder.config
    if not config.has_memory:
        raise CheckpointError(f"a dense model has no memory that {path} could replace")
    expected = (config.vocab_size, config.num_hidden_layers, config.hidden_size)
    found = (pack.vocab_size, pack.num_layers, pack.hidden_size)
    if found != expected:
        raise ConfigError(
            f"{path} holds {found[0]} tokens × {found[1]} layers × {found[2]}, but the checkpoint "
            f"has {expected[0]} × {expected[1]} × {expected[2]}: they do not belong together"
        )
