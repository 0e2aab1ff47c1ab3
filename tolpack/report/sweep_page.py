"""The page of a sweep: the trade-off, which setting to ship, and all results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tolpack.report.page_content import (
    LINEAR_PCT,
    Axis,
    Chart,
    ChartPoint,
    DataTable,
    Page,
    PageSection,
    Series,
)
from tolpack.report.tables import format_bytes
from tolpack.report.trade_off import family
from tolpack.runtime.machine import machine, versions

if TYPE_CHECKING:  # they load torch
    from tolpack.evaluation.evaluator import Baseline, Evaluation, PackScore
    from tolpack.evaluation.experiment_runner import SweepResult
    from tolpack.evaluation.recommend import Recommendation

INCREASE = Axis("perplexity increase", "%", linear_below=LINEAR_PCT)
_SIZE = Axis("size of the pack", "MB", log=True)


@dataclass(frozen=True, slots=True)
class ReportSubject:
    """The subject of a report: a checkpoint and a text, as the command line names them.

    ``command``: the command line. ``build``: the command that builds one of the packs, without the
    options that differ between them.
    """

    checkpoint: Path
    text: Path
    command: str
    build: str

    def title(self, baseline: Baseline) -> str:
        """Return the title of a picture."""
        return f"{self.checkpoint.name}: {baseline.tokens:,} tokens of {self.text.name}"


def sweep_page(
    subject: ReportSubject,
    evaluation: Evaluation,
    results: Sequence[SweepResult],
    skipped: Sequence[str],
    recommended: Sequence[Recommendation],
) -> Page:
    """Return the report of ``tolpack eval``."""
    packs = evaluation.packs
    sections = [trade_off_section(packs, results, skipped, subject.command)]
    if recommended:
        sections.append(recommendation_section(recommended, subject))
    sections.append(settings_section(packs, results, subject.command))
    return Page(
        title=f"{subject.checkpoint.name}: perplexity against size",
        lead=lead(recommended),
        facts=facts(subject, evaluation.context, evaluation.baseline),
        sections=tuple(sections),
    )


def lead(recommended: Sequence[Recommendation]) -> str:
    """Return a sentence on the pack for the middle limit, with the tightest limit that it meets."""
    if not recommended:
        return "What each pack takes on disk, and what it costs in perplexity."
    best = recommended[len(recommended) // 2].smallest
    limit = min(one.limit_pct for one in recommended if one.smallest is best)
    ratio = best.score.ratio_fp16
    size = f"{ratio:.1f} times less" if ratio > 1 else "no less"
    return (
        f"At a cost of at most {limit:g} % of perplexity, the smallest pack takes "
        f"{format_bytes(best.score.bytes)}, {size} than the table in FP16: "
        f"{best.options.arguments or 'the defaults'}."
    )


def facts(subject: ReportSubject, context: int, baseline: Baseline) -> tuple[tuple[str, str], ...]:
    """Return the conditions of all numbers."""
    known = versions("numpy", "torch", "zstandard")
    return (
        ("checkpoint", str(subject.checkpoint)),
        ("text", f"{subject.text}, {baseline.tokens:,} tokens in windows of {context}"),
        ("its perplexity", f"{baseline.ppl:.3f} ± {baseline.ppl_se:.3f}"),
        ("errors", "standard errors over windows; increases are paired window by window"),
        ("machine", machine()),
        ("versions", ", ".join(f"{name} {number}" for name, number in known.items())),
        ("command", subject.command),
    )


def trade_off_section(
    packs: Sequence[PackScore],
    results: Sequence[SweepResult],
    skipped: Sequence[str],
    command: str,
) -> PageSection:
    """Return a chart of perplexity against size, with the Pareto front."""
    series = []
    ordered = sorted((result for result in results if result.on_front), key=lambda p: p.score.bytes)
    if len(ordered) > 1:
        front = tuple(_point(one.score, "", ()) for one in ordered)
        series.append(Series("Pareto front", front, "step"))
    if packs:
        given = tuple(_point(one, Path(one.path).name, details(one)) for one in packs)
        series.append(Series("packs", given))
    for name in dict.fromkeys(family(result) for result in results):
        own = tuple(
            _point(result.score, result.options.short_label, _setting_details(result))
            for result in results
            if family(result) == name
        )
        series.append(Series(name, own))
    caption = (
        "Lower and further left is better. Whiskers are standard errors; the vertical axis is "
        f"linear below {LINEAR_PCT:g} % and logarithmic above."
    )
    chart = Chart(_SIZE, INCREASE, tuple(series), caption)
    text = "\n\n".join(f"Not built: {one}." for one in skipped)
    return PageSection("Perplexity against size", text, (chart,), command=command)


def recommendation_section(
    recommended: Sequence[Recommendation], subject: ReportSubject
) -> PageSection:
    """Return a table of the options to ship, for each limit."""
    header = ("at most", "build it with", "increase, %", "± , %", "MB", "× FP16", "MACs a token",
              "without a basis")  # fmt: skip
    rows = tuple(
        (
            f"{one.limit_pct:g} %",
            one.smallest.options.arguments or "(the defaults)",
            one.smallest.score.ppl_increase_pct,
            one.smallest.score.ppl_increase_se_pct,
            one.smallest.score.bytes / 1e6,
            one.smallest.score.ratio_fp16,
            float(one.smallest.score.macs_per_token),
            _label_and_size(one.without_basis),
        )
        for one in recommended
    )
    text = (
        "The smallest pack whose increase in perplexity, two standard errors above what was "
        "measured, stays within a limit. A basis makes packs smaller, and its multiply-adds are "
        "paid for every token; the last column is the smallest pack that needs none."
    )
    table = DataTable(header, rows, ("", "", "+.3f", ".3f", ".2f", ".2f", ",.0f", ""))
    example = recommended[len(recommended) // 2].smallest.options.arguments
    command = f"{subject.build} {example}".rstrip()
    return PageSection("Which setting to ship", text, table=table, command=command)


def _label_and_size(result: SweepResult | None) -> str | None:
    if result is None:
        return None
    return f"{result.options.short_label}: {format_bytes(result.score.bytes)}"


def settings_section(
    packs: Sequence[PackScore], results: Sequence[SweepResult], command: str
) -> PageSection:
    """Return a table of every number of every pack."""
    header = ("setting", "increase, %", "± , %", "perplexity", "±", "MB", "× FP16", "bits a value",
              "read a token, B", "resident, B", "MACs a token", "on the front")  # fmt: skip
    named = [(Path(pack.path).name, pack, None) for pack in packs]
    swept = [(p.options.arguments or "(the defaults)", p.score, p.on_front) for p in results]
    rows = tuple(
        (
            name,
            one.ppl_increase_pct,
            one.ppl_increase_se_pct,
            one.ppl,
            one.ppl_se,
            one.bytes / 1e6,
            one.ratio_fp16,
            one.bits_per_weight,
            one.read_bytes_per_token,
            float(one.resident_bytes),
            float(one.macs_per_token),
            None if on_front is None else "yes" if on_front else "no",
        )
        for name, one, on_front in [*named, *swept]
    )
    formats = ("", "+.3f", ".3f", ".3f", ".3f", ".2f", ".2f", ".2f", ",.0f", ",.0f", ",.0f", "")
    return PageSection("All packs", table=DataTable(header, rows, formats), command=command)


def details(score: PackScore) -> tuple[tuple[str, str], ...]:
    """Return the values that a chart shows beside a pack's point."""
    return (
        ("perplexity", f"{score.ppl:.3f} ± {score.ppl_se:.3f}"),
        ("increase", f"{score.ppl_increase_pct:+.3f} ± {score.ppl_increase_se_pct:.3f} %"),
        ("size", f"{format_bytes(score.bytes)}, × {score.ratio_fp16:.2f}"),
        ("read a token", format_bytes(score.read_bytes_per_token)),
        ("MACs a token", f"{score.macs_per_token:,}"),
    )


def _setting_details(result: SweepResult) -> tuple[tuple[str, str], ...]:
    options = result.options.arguments or "(the defaults)"
    return (("tolpack build", options), *details(result.score))


def _point(score: PackScore, label: str, shown: tuple[tuple[str, str], ...]) -> ChartPoint:
    return ChartPoint(
        score.bytes / 1e6, score.ppl_increase_pct, score.ppl_increase_se_pct, label, shown
    )
