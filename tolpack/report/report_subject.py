"""The subject of a report: its lead, its conditions, and the command that builds a pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tolpack.model.plausibility import LEAST_TOKENS, LEAST_WINDOWS, PROVISIONAL
from tolpack.report.evaluation_tables import pack_increase
from tolpack.report.tables import format_bytes
from tolpack.report.trade_off import front_of
from tolpack.runtime.machine import machine, versions
from tolpack.runtime.sizes import plus_minus
from tolpack.storage.inputs import InputPath

if TYPE_CHECKING:  # they load torch
    from tolpack.evaluation.experiment_runner import SweepResult
    from tolpack.evaluation.recommend import Recommendation
    from tolpack.evaluation.scores import Baseline, PackScore
    from tolpack.evaluation.sweep_grid import PackOptions

# Leads a report of packs.
PACKS = "What each pack takes on disk, and what it changes in the model's predictions."


@dataclass(frozen=True, slots=True)
class ReportSubject:
    """The subject of a report: a checkpoint and texts, as the command line names them.

    ``command``: the command line. ``build``: the command that builds one of the packs, without the
    options that differ between them.
    """

    checkpoint: InputPath
    texts: tuple[InputPath, ...]
    command: str
    build: str

    def title(self, baseline: Baseline) -> str:
        """Return the title of a picture."""
        names = ", ".join(text.name for text in self.texts)
        return f"{self.checkpoint.name}: {baseline.tokens:,} tokens of {names}"

    def build_command(self, options: PackOptions) -> str:
        """Return the whole command that builds the pack of `options`."""
        return f"{self.build} {options.arguments}".rstrip()


@dataclass(frozen=True, slots=True)
class TradeOff:
    """Packs against a checkpoint: ``packs`` that were given, and ``results`` of settings."""

    subject: ReportSubject
    baseline: Baseline
    packs: tuple[PackScore, ...]
    results: tuple[SweepResult, ...]

    @property
    def front(self) -> list[PackScore]:
        """Those that no other one is both smaller and nearer to the checkpoint than."""
        return front_of(self.packs, self.results)


def lead(
    baseline: Baseline, context: int, recommended: Sequence[Recommendation], shown: str = PACKS
) -> str:
    """Return the pack for the middle limit, with the tightest limit that it meets, or what is
    `shown` if none is recommended; and what the numbers were measured on.
    """
    answer = _answer(recommended) if recommended else shown
    return f"{answer}\n\n{_measured_on(baseline, context)}"


def _answer(recommended: Sequence[Recommendation]) -> str:
    best = recommended[len(recommended) // 2].smallest
    limit = min(one.limit_nats for one in recommended if one.smallest is best)
    ratio = best.score.ratio_fp16
    larger = f"{ratio:.1f} times as large" if ratio > 1 else "no larger"
    return (
        f"At a KL divergence of at most {limit:g} nats from the checkpoint's predictions, the "
        f"smallest pack takes {format_bytes(best.score.bytes)} and reads "
        f"{format_bytes(best.score.read_bytes_per_token)} a token: "
        f"{best.options.arguments}. The table in FP16 is {larger}. The pack "
        f"changes the perplexity by {pack_increase(best.score)}."
    )


def shown_warnings(warnings: Sequence[str]) -> tuple[str, ...]:
    """Return warnings, each once, without those that the lead tells."""
    return tuple(one for one in dict.fromkeys(warnings) if PROVISIONAL not in one)


def _measured_on(baseline: Baseline, context: int) -> str:
    """Return tokens and windows, and that numbers are provisional where they are few."""
    texts = baseline.by_text or (baseline,)
    counts = [-(-one.tokens // context) for one in texts]
    windows = "1 window" if sum(counts) == 1 else f"{sum(counts):,} windows"
    of = f" of {len(texts)} texts" if len(texts) > 1 else ""
    measured = f"easured on {baseline.tokens:,} tokens{of}, in {windows} of {context:,}"
    if min(counts) >= LEAST_WINDOWS and baseline.tokens >= LEAST_TOKENS:
        return f"M{measured}."
    return (
        f"Provisional: m{measured}. Use {LEAST_TOKENS:,} tokens or more, and {LEAST_WINDOWS} "
        "windows or more of each text, before you decide."
    )


def facts(subject: ReportSubject, context: int, baseline: Baseline) -> tuple[tuple[str, str], ...]:
    """Return the conditions of all numbers."""
    known = versions("numpy", "torch", "zstandard")
    names = ", ".join(map(str, subject.texts))
    return (
        ("checkpoint", str(subject.checkpoint)),
        *((f"text {one.text}", _tokens(one)) for one in baseline.by_text),
        ("text", f"{names}, {_tokens(baseline)}, in windows of {context:,}"),
        ("errors", "standard errors over windows; increases are paired window by window"),
        ("KL divergence", "of a pack's predictions from the checkpoint's, over all tokens scored"),
        ("machine", machine()),
        ("versions", ", ".join(f"{name} {number}" for name, number in known.items())),
        ("command", subject.command),
    )


def _tokens(baseline: Baseline) -> str:
    perplexity = plus_minus(baseline.ppl, baseline.ppl_se, ",.3f")
    return f"{baseline.tokens:,} tokens, perplexity {perplexity}"
