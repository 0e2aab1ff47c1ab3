"""Perplexity of packs against the checkpoint they were made from: ``tolpack eval``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tolpack.evaluation.evaluator import Baseline, Evaluator, PackScore
from tolpack.runtime.progress import Reporter
from tolpack.sources.checkpoint.checkpoint import Reading


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
        checkpoint, text, tokenizer=tokenizer, reading=reading, context=context, reporter=reporter
    )
    return Evaluation(
        evaluator.context, evaluator.baseline, tuple(evaluator.pack(path) for path in packs)
    )
