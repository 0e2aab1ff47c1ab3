"""Packs against the checkpoint that they were made from: ``tolpack eval``.

An `Evaluator` holds a checkpoint and one or more texts. It scores packs in place of the
checkpoint's memory by perplexity, and by their divergence from the checkpoint's own predictions.
Those are too large to be kept: the checkpoint runs beside each pack, or beside several at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.evaluation.pack_description import every_table
from tolpack.evaluation.provenance_check import OriginCheck, pack_name
from tolpack.evaluation.scores import Baseline, Evaluation, PackScore
from tolpack.evaluation.subject import open_subject, read_bytes_per_token
from tolpack.evaluation.text_windows import checked_context, text_names, window_tokens
from tolpack.model.divergence import Divergence, compare
from tolpack.model.language_model import Memory
from tolpack.model.perplexity import Score, increase_pct, score
from tolpack.model.plausibility import LEAST_WINDOWS, fall_warning, short_text_warning
from tolpack.model.text import find_tokenizer, read_token_ids
from tolpack.model.tokenizer_check import TokenizerCheck
from tolpack.pack import Pack, open_first_table
from tolpack.reading.edits_files import share_edits
from tolpack.reading.summary import bits_per_weight, ratio_fp16, settings_kind
from tolpack.runtime.progress import KeptWarnings, Reporter
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.storage.inputs import input_path


class Evaluator:
    """Scores a checkpoint, packs of it, and other memories, on one or more texts.

    Parameters
    ----------
    checkpoint : str or Path
        A MemoryLLM, a Flex-MemoryLLM, or a dense model, which has no packs.
    text : str, Path, or a sequence of them
        UTF-8 texts, or ``.npy`` of token ids.
    tokenizer : str or Path, optional
        A ``tokenizer.json``; default: the one beside the checkpoint.
    checkpoint_options : CheckpointOptions, optional
        Settings for a checkpoint that does not describe itself.
    context : int, optional
        Window length in tokens; default: the model's ``max_position_embeddings``, at most 2,048,
        and less for a large vocabulary.
    tokens : int, optional
        Score no more than so many tokens, the first ones of each text.
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
        text: str | Path | Sequence[str | Path],
        *,
        tokenizer: str | Path | None = None,
        checkpoint_options: CheckpointOptions | None = None,
        context: int | None = None,
        tokens: int | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.reporter = KeptWarnings(reporter)
        self.subject = open_subject(checkpoint, checkpoint_options)
        self.model = self.subject.model
        self.context = checked_context(self.model, context)
        found = find_tokenizer(self.subject.path, tokenizer)
        self.texts = text_names([text] if isinstance(text, (str, Path)) else text)
        vocab_size = self.model.vocab_size
        self._check = TokenizerCheck(self.subject.path, vocab_size, self.reporter)
        ids = [read_token_ids(one, vocab_size, found, self._check) for one in self.texts]
        self.text_ids = [one if tokens is None else one[: tokens + 1] for one in ids]
        self._base_scores: list[Score] = []
        is_read = any(input_path(one).suffix != ".npy" for one in self.texts)
        self._check_origin = OriginCheck(self.subject, found if is_read else None, self.reporter)
        self._warn(self._short_text_warning())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes results so far doubtful."""
        return tuple(self.reporter.warnings)

    def warn_of_falls(self, packs: Sequence[tuple[str, PackScore]]) -> None:
        """Warn if perplexity falls with some of `packs`, by their names, on any text."""
        lowest = [
            (name, min((one, *one.by_text), key=lambda own: own.ppl_increase_pct))
            for name, one in packs
        ]
        self._warn(fall_warning(
            [(name, one.ppl_increase_pct, one.ppl_increase_se_pct) for name, one in lowest]
        ))  # fmt: skip

    def _short_text_warning(self) -> str | None:
        """Return a warning if there are few tokens in all, or if one of the texts is short."""
        count, sizes = len(self.texts), [ids.size - 1 for ids in self.text_ids]
        shortest = min(range(count), key=sizes.__getitem__)
        if count > 1 and self.windows < LEAST_WINDOWS:
            name = f"text {input_path(self.texts[shortest]).name}"
            return short_text_warning(sizes[shortest], self.windows, self.context, name)
        return short_text_warning(self._total_tokens, len(self.window_tokens), self.context)

    def _warn(self, warning: str | None) -> None:
        if warning is not None:
            self.reporter.warn(warning)

    def _judge_baseline(self) -> None:
        """Warn if the checkpoint predicts a text about as chance does."""
        for text, own in zip(self.texts, self._base_scores):
            self._check.judge(own.ppl, input_path(text).name)

    @property
    def base_scores(self) -> list[Score]:
        """The checkpoint's own score on each text; measured once, with the first packs or alone."""
        if not self._base_scores:
            with self.reporter.phase("baseline", self._total_tokens, "tok") as done:
                self._base_scores = [
                    score(self.model, ids, self.context, done) for ids in self.text_ids
                ]
            self._judge_baseline()
        return self._base_scores

    @property
    def base_score(self) -> Score:
        """The same, over the windows of all texts."""
        return Score.joined(self.base_scores)

    @property
    def baseline(self) -> Baseline:
        """The same, as it is reported."""
        by_text = [self._baseline(*one) for one in zip(self.base_scores, self.texts)]
        if len(by_text) == 1:
            return self._baseline(self.base_score)
        return replace(self._baseline(self.base_score), by_text=tuple(by_text))

    def _baseline(self, score: Score, text: str = "") -> Baseline:
        return Baseline(
            score.ppl,
            score.ppl_se,
            score.mean_nll_nats,
            score.total_tokens,
            self.subject.weight_bytes["ffn_bytes"],
            text,
            ffn_bytes_16=self.subject.weight_bytes["ffn_bytes_16"],
            table_bytes=self.subject.weight_bytes["table_bytes"],
        )

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """Token ids of the texts, one after the other: int64 (tokens,)."""
        return np.concatenate(self.text_ids)

    @property
    def window_tokens(self) -> NDArray[np.int64]:
        """Tokens scored in each window of all texts, int64 (windows,)."""
        return np.concatenate([window_tokens(ids, self.context) for ids in self.text_ids])

    @property
    def windows(self) -> int:
        """Number of windows, of the shortest text."""
        return min(len(window_tokens(ids, self.context)) for ids in self.text_ids)

    @property
    def _total_tokens(self) -> int:
        return sum(ids.size - 1 for ids in self.text_ids)

    def score(self, memory: Memory, name: str, tokens: int | None = None) -> tuple[Score, Score]:
        """Score the model with another memory, on the first `tokens` tokens of each text.

        `tokens` is a multiple of the window; default: all. Returns the score, and the checkpoint's
        own of the same windows.
        """
        model = self.model.with_memory(memory)
        parts = [ids if tokens is None else ids[: tokens + 1] for ids in self.text_ids]
        with self.reporter.phase(name, sum(ids.size - 1 for ids in parts), "tok") as done:
            found = [score(model, ids, self.context, done) for ids in parts]
        own = [base.first(len(one.tokens)) for base, one in zip(self.base_scores, found)]
        return Score.joined(found), Score.joined(own)

    def packs(
        self, paths: Sequence[str | Path], edits: Sequence[str | Path] = ()
    ) -> tuple[PackScore, ...]:
        """Score packs in place of the memory, side by side, each with those of `edits` that belong
        to it; errors as of `pack_windows`, and ConfigError also if some belong to none.
        """
        own = share_edits(paths, edits)
        scores = tuple(one for one, _ in self._compare(paths, own)) if paths else ()
        self.warn_of_falls([(one.name, one) for one in scores])
        return scores

    def pack_windows(self, path: str | Path) -> tuple[PackScore, Score]:
        """Score a pack in place of the memory, in sum and window by window.

        Raises
        ------
        CheckpointError, ConfigError, FormatError, FileAccessError
            It cannot be read, or does not fit the checkpoint.
        """
        return self._compare([path], [()])[0]

    def _compare(
        self, paths: Sequence[str | Path], edits: Sequence[Sequence[str | Path]]
    ) -> list[tuple[PackScore, Score]]:
        with ExitStack() as stack:
            packs = [stack.enter_context(open_first_table(*one)) for one in zip(paths, edits)]
            models = [self.subject.with_pack(pack, path) for pack, path in zip(packs, paths)]
            for pack, path in zip(packs, paths):
                self._check_origin(pack, pack_name(path))
            name = Path(paths[0]).name if len(paths) == 1 else f"{len(paths)} packs"
            with self.reporter.phase(name, self._total_tokens * len(paths), "tok") as done:
                compared = [
                    compare(self.model, models, ids, self.context, done) for ids in self.text_ids
                ]
            self._base_scores = [base for base, _ in compared]
            self._judge_baseline()
            return [
                self._pack_scores(pack, path, [found[number] for _, found in compared])
                for number, (pack, path) in enumerate(zip(packs, paths))
            ]

    def _pack_scores(
        self, pack: Pack, path: str | Path, found: Sequence[tuple[Score, Divergence]]
    ) -> tuple[PackScore, Score]:
        """Return the pack's score, and its windows; `found` on each text."""
        scores, divergences = zip(*found)
        windows = Score.joined(scores)
        read, constant = self._lookup_costs(pack, path)
        sizes = [ids.size - 1 for ids in self.text_ids]
        total = _pack_score(
            windows, Divergence.joined(divergences), self.base_score,
            float(np.average(read, weights=sizes)), constant,
        )  # fmt: skip
        if len(self.texts) == 1:
            return total, windows
        each = zip(scores, divergences, self.base_scores, read)
        alone = [_pack_score(*one, constant) for one in each]
        by_text = [replace(one, text=text) for one, text in zip(alone, self.texts)]
        return replace(total, by_text=tuple(by_text)), windows

    def _lookup_costs(self, pack: Pack, path: str | Path) -> tuple[list[float], dict[str, Any]]:
        """Return the bytes that a lookup reads on each text, and the fields of a `PackScore` that
        no text changes.
        """
        with every_table(pack) as tables:
            read = [read_bytes_per_token(tables, ids[:-1]) for ids in self.text_ids]
            resident_bytes = sum(table.resident_bytes for table in tables)
            macs = sum(table.macs_per_token for table in tables)
        return read, {
            "path": str(path),
            "kind": settings_kind(pack.container),
            "edits": pack.edit_files,
            **self.subject.weight_bytes,
            "bytes": pack.nbytes,
            "ratio_fp16": ratio_fp16(pack.container),
            "bits_per_weight": bits_per_weight(pack.container),
            "resident_bytes": resident_bytes,
            "macs_per_token": macs,
        }


def _pack_score(
    windows: Score,
    divergence: Divergence,
    base: Score,
    read_bytes_per_token: float,
    constant: dict[str, Any],
) -> PackScore:
    increase, increase_se = increase_pct(windows, base)
    return PackScore(
        **constant,
        ppl=windows.ppl,
        ppl_se=windows.ppl_se,
        nll_nats=windows.mean_nll_nats,
        tokens=windows.total_tokens,
        ppl_increase_pct=increase,
        ppl_increase_se_pct=increase_se,
        kl_mean_nats=divergence.kl_mean_nats,
        kl_mean_se_nats=divergence.kl_mean_se_nats,
        kl_median_nats=divergence.kl_median_nats,
        kl_p99_nats=divergence.kl_p99_nats,
        kl_max_nats=divergence.kl_max_nats,
        top1_agreement_pct=divergence.top1_agreement_pct,
        top1_agreement_se_pct=divergence.top1_agreement_se_pct,
        read_bytes_per_token=read_bytes_per_token,
    )


def evaluate(
    checkpoint: str | Path,
    packs: Sequence[str | Path],
    text: str | Path | Sequence[str | Path],
    *,
    tokenizer: str | Path | None = None,
    checkpoint_options: CheckpointOptions | None = None,
    context: int | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Score a checkpoint, and packs in place of its memory, by perplexity and divergence on texts.

    Parameters
    ----------
    checkpoint : str or Path
        A MemoryLLM, a Flex-MemoryLLM, or a dense model, which has no packs.
    packs : sequence of str or Path
        Packs made from it.
    text : str, Path, or a sequence of them
        UTF-8 texts, or ``.npy`` of token ids. Of several, results are over the windows of all, and
        stand beside those on each.
    tokenizer : str or Path, optional
        A ``tokenizer.json``; default: the one beside the checkpoint.
    checkpoint_options : CheckpointOptions, optional
        Settings for a checkpoint that does not describe itself.
    context : int, optional
        Window length in tokens; default: the model's ``max_position_embeddings``, at most 2,048,
        and less for a large vocabulary.
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
    scores = evaluator.packs(packs)
    return Evaluation(evaluator.context, evaluator.baseline, scores, evaluator.warnings)
