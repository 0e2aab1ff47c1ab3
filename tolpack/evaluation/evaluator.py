"""Perplexity of packs against the checkpoint that they were made from: ``tolpack eval``.

An `Evaluator` holds a checkpoint and a text. It scores the checkpoint itself once, and then any
number of packs, or of other memories, in place of the checkpoint's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import ConfigError
from tolpack.evaluation.subject import open_subject
from tolpack.model.language_model import LanguageModel, Memory
from tolpack.model.perplexity import Score, increase_pct, score
from tolpack.model.text import find_tokenizer, read_token_ids
from tolpack.pack import open_first_table
from tolpack.reading.summary import bits_per_weight, ratio_fp16
from tolpack.runtime.progress import Reporter
from tolpack.sources.checkpoint.options import CheckpointOptions


@dataclass(frozen=True, slots=True)
class Baseline:
    """Score of the checkpoint itself.

    ``nll_nats`` is per token; ``ffn_bytes`` are those of the memory FFNs as stored, ``None`` for a
    dense model.
    """

    ppl: float
    ppl_se: float
    nll_nats: float
    tokens: int
    ffn_bytes: int | None


@dataclass(frozen=True, slots=True)
class PackScore:
    """Score of one pack; the fields are those of ``tolpack eval --json``.

    ``read_bytes_per_token`` is the mean over the evaluated tokens of the bytes that a lookup of one
    token reads from the file; ``ppl_increase_se_pct`` is paired window by window.
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
    """Result of ``tolpack eval``; ``context`` is the window length in tokens."""

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


class Evaluator:
    """Scores a checkpoint, packs of it, and other memories, on one text.

    Parameters
    ----------
    checkpoint : str or Path
        A MemoryLLM, a Flex-MemoryLLM, or a dense model, which has no packs.
    text : str or Path
        UTF-8 text, or ``.npy`` of token ids.
    tokenizer : str or Path, optional
        A ``tokenizer.json``; default: the one beside the checkpoint.
    checkpoint_options : CheckpointOptions, optional
        Settings for a checkpoint that does not describe itself.
    context : int, optional
        Window length in tokens; default: the model's ``max_position_embeddings``.
    tokens : int, optional
        Score no more than so many tokens, the first ones.
    reporter : Reporter, optional
        Receives progress.

    Raises
    ------
    CheckpointError, ConfigError
        An input cannot be used.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        text: str | Path,
        *,
        tokenizer: str | Path | None = None,
        checkpoint_options: CheckpointOptions | None = None,
        context: int | None = None,
        tokens: int | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.reporter = reporter or Reporter()
        self.subject = open_subject(checkpoint, checkpoint_options)
        self.model = self.subject.model
        chosen = context or self.model.max_position_embeddings
        if chosen is None:
            raise ConfigError("the config has no max_position_embeddings: give --context N")
        self.context = chosen
        found = find_tokenizer(self.subject.path, tokenizer)
        ids = read_token_ids(text, self.model.vocab_size, found)
        self.token_ids = ids if tokens is None else ids[: tokens + 1]

    @cached_property
    def base_score(self) -> Score:
        """The checkpoint's own score."""
        return self._score(self.model, "baseline", self.token_ids.size)

    @property
    def baseline(self) -> Baseline:
        """The same, as it is reported."""
        score = self.base_score
        return Baseline(
            score.ppl,
            score.ppl_se,
            score.mean_nll_nats,
            score.total_tokens,
            self.subject.ffn_bytes,
        )

    @property
    def window_tokens(self) -> NDArray[np.int64]:
        """Tokens scored in each window, int64 (windows,)."""
        scored = self.token_ids.size - 1
        full, rest = divmod(scored, self.context)
        return np.array([self.context] * full + [rest] * (rest > 0), np.int64)

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.window_tokens)

    def score(self, memory: Memory, name: str, tokens: int | None = None) -> Score:
        """Score the model with another memory, on the first `tokens` tokens (default: all)."""
        size = self.token_ids.size if tokens is None else min(tokens + 1, self.token_ids.size)
        return self._score(self.model.with_memory(memory), name, size)

    def pack(self, path: str | Path) -> PackScore:
        """Score a pack in place of the memory; errors as of `pack_windows`."""
        return self.pack_windows(path)[0]

    def pack_windows(self, path: str | Path) -> tuple[PackScore, Score]:
        """Score a pack in place of the memory, in sum and window by window.

        Raises
        ------
        CheckpointError, ConfigError, FormatError, FileAccessError
            It cannot be read, or does not fit the checkpoint.
        """
        with open_first_table(path) as pack:
            model = self.subject.with_pack(pack, path)
            base_score = self.base_score
            windows = self._score(model, Path(path).name, self.token_ids.size)
            increase, increase_se = increase_pct(windows, base_score)
            total = PackScore(
                path=str(path),
                ppl=windows.ppl,
                ppl_se=windows.ppl_se,
                nll_nats=windows.mean_nll_nats,
                tokens=windows.total_tokens,
                ffn_bytes=self.subject.ffn_bytes,
                bytes=pack.nbytes,
                ratio_fp16=ratio_fp16(pack.container),
                bits_per_weight=bits_per_weight(pack.container),
                ppl_increase_pct=increase,
                ppl_increase_se_pct=increase_se,
                read_bytes_per_token=self.subject.read_bytes_per_token(pack, self.token_ids[:-1]),
                resident_bytes=pack.resident_bytes,
                macs_per_token=pack.macs_per_token,
            )
            return total, windows

    def _score(self, model: LanguageModel, name: str, size: int) -> Score:
        with self.reporter.phase(name, size - 1, "tok") as done:
            return score(model, self.token_ids[:size], self.context, done)


def evaluate(
    checkpoint: str | Path,
    packs: Sequence[str | Path],
    text: str | Path,
    *,
    tokenizer: str | Path | None = None,
    checkpoint_options: CheckpointOptions | None = None,
    context: int | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Score a checkpoint, and packs in place of its memory, on a text.

    Parameters
    ----------
    checkpoint : str or Path
        A MemoryLLM, a Flex-MemoryLLM, or a dense model, which has no packs.
    packs : sequence of str or Path
        Packs made from it.
    text : str or Path
        UTF-8 text, or ``.npy`` of token ids.
    tokenizer : str or Path, optional
        A ``tokenizer.json``; default: the one beside the checkpoint.
    checkpoint_options : CheckpointOptions, optional
        Settings for a checkpoint that does not describe itself.
    context : int, optional
        Window length in tokens; default: the model's ``max_position_embeddings``.
    reporter : Reporter, optional
        Receives progress.

    Returns
    -------
    Evaluation
        The checkpoint's score, and that of each pack in the order given.

    Raises
    ------
    CheckpointError, ConfigError, FormatError, FileAccessError
        An input cannot be used, or a pack does not fit the checkpoint.
    """
    evaluator = Evaluator(
        checkpoint,
        text,
        tokenizer=tokenizer,
        checkpoint_options=checkpoint_options,
        context=context,
        reporter=reporter,
    )
    return Evaluation(
        evaluator.context, evaluator.baseline, tuple(evaluator.pack(path) for path in packs)
    )
