"""The page of a sweep: the trade-off, which setting to ship, and all results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tolpack.report.evaluation_tables import pack_agreement, pack_divergence, pack_increase
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
from tolpack.storage.inputs import InputPath

if TYPE_CHECKING:  # they load torch
    from tolpack.evaluation.evaluator import Baseline, Evaluation, PackScore
    from tolpack.evaluation.experiment_runner import SweepResult
    from tolpack.evaluation.recommend import Recommendation

# Gives a measure of a pack, and its standard error.
_Measure = Callable[["PackScore"], tuple[float, float]]
INCREASE = Axis("perplexity increase", "%", linear_below=LINEAR_PCT)
_SIZE = Axis("size of the pack", "MB", log=True)
_DIVERGENCE = Axis("mean KL divergence", "nats", log=True)


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


def sweep_page(
    subject: ReportSubject,
    evaluation: Evaluation,
    results: Sequence[SweepResult],
    skipped: Sequence[str],
    recommended: Sequence[Recommendation],
) -> Page:
    """Return the report of ``tolpack eval``."""
    packs = evaluation.packs
    sections = trade_off_sections(packs, results, skipped, subject.command)
    if recommended:
        sections.append(recommendation_section(recommended, subject))
    sections += settings_sections(packs, results, subject.command)
    return Page(
        title=f"{subject.checkpoint.name}: what packs change, against their size",
        lead=lead(recommended),
        facts=facts(subject, evaluation.context, evaluation.baseline),
        sections=tuple(sections),
    )


def lead(recommended: Sequence[Recommendation]) -> str:
    """Return a sentence on the pack for the middle limit, with the tightest limit that it meets."""
    if not recommended:
        return "What each pack takes on disk, and what it changes in the model's predictions."
    best = recommended[len(recommended) // 2].smallest
    limit = min(one.limit_nats for one in recommended if one.smallest is best)
    ratio = best.score.ratio_fp16
    size = f"{ratio:.1f} times less" if ratio > 1 else "no less"
    return (
        f"At a KL divergence of at most {limit:g} nats from the checkpoint's predictions, the "
        f"smallest pack takes {format_bytes(best.score.bytes)}, {size} than the table in FP16: "
        f"{best.options.arguments or 'the defaults'}. It changes the perplexity by "
        f"{pack_increase(best.score)}."
    )


def facts(subject: ReportSubject, context: int, baseline: Baseline) -> tuple[tuple[str, str], ...]:
    """Return the conditions of all numbers."""
    known = versions("numpy", "torch", "zstandard")
    names = ", ".join(map(str, subject.texts))
    return (
        ("checkpoint", str(subject.checkpoint)),
        *((f"text {one.text}", _tokens(one)) for one in baseline.by_text),
        ("text", f"{names}, {_tokens(baseline)}, in windows of {context}"),
        ("errors", "standard errors over windows; increases are paired window by window"),
        ("KL divergence", "of a pack's predictions from the checkpoint's, over all tokens scored"),
        ("machine", machine()),
        ("versions", ", ".join(f"{name} {number}" for name, number in known.items())),
        ("command", subject.command),
    )


def _tokens(baseline: Baseline) -> str:
    return f"{baseline.tokens:,} tokens, perplexity {baseline.ppl:.3f} ± {baseline.ppl_se:.3f}"


def trade_off_sections(
    packs: Sequence[PackScore],
    results: Sequence[SweepResult],
    skipped: Sequence[str],
    command: str,
) -> list[PageSection]:
    """Return charts against size: of perplexity, and of KL divergence with its Pareto front."""
    reading = (
        "Lower and further left is better. Whiskers are standard errors; the vertical axis is "
    )
    increases = Chart(
        _SIZE, INCREASE, tuple(_series(packs, results, _increase)),
        f"{reading}linear below {LINEAR_PCT:g} % and logarithmic above.",
    )  # fmt: skip
    divergences = Chart(
        _SIZE, _DIVERGENCE, (*_series(packs, results, _divergence), *_front(results)),
        f"{reading}logarithmic.",
    )  # fmt: skip
    text = "\n\n".join(f"Not built: {one}." for one in skipped)
    about = (
        "How far the predictions of a pack are from the checkpoint's own. Perplexity asks how well "
        "the text is predicted: on text unlike a model's training text it may fall as rows get "
        "worse. KL divergence does not, so packs are judged by it."
    )
    return [
        PageSection("Perplexity against size", text, (increases,), command=command),
        PageSection("KL divergence against size", about, (divergences,), command=command),
    ]


def _series(
    packs: Sequence[PackScore], results: Sequence[SweepResult], measure: _Measure
) -> list[Series]:
    """Return the packs, and the results of each kind of options."""
    series = []
    if packs:
        given = tuple(_point(one, measure, one.name, details(one)) for one in packs)
        series.append(Series("packs", given))
    for name in dict.fromkeys(family(result) for result in results):
        own = tuple(
            _point(result.score, measure, result.options.short_label, _setting_details(result))
            for result in results
            if family(result) == name
        )
        series.append(Series(name, own))
    return series


def _front(results: Sequence[SweepResult]) -> tuple[Series, ...]:
    """Return the Pareto front, if it joins anything."""
    on_front = (one.score for one in results if one.on_front)
    ordered = sorted(on_front, key=lambda score: score.bytes)
    points = tuple(_point(score, _divergence) for score in ordered)
    return (Series("Pareto front", points, "step"),) if len(points) > 1 else ()


def recommendation_section(
    recommended: Sequence[Recommendation], subject: ReportSubject
) -> PageSection:
    """Return a table of the options to ship, for each limit."""
    header = ("at most, nats", "build it with", "KL, nats", "±", "top 1, %", "increase, %", "± , %",
              "MB", "× FP16", "MACs a token", "without a basis")  # fmt: skip
    rows = tuple(
        (
            f"{one.limit_nats:g}",
            one.smallest.options.arguments or "(the defaults)",
            one.smallest.score.kl_mean_nats,
            one.smallest.score.kl_mean_se_nats,
            one.smallest.score.top1_agreement_pct,
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
        "The smallest pack whose KL divergence, two standard errors above what was measured, stays "
        "within a limit; on the worst text, if there are several. A basis makes packs smaller, and "
        "its multiply-adds are paid for every token; the last column is the smallest pack that "
        "needs none."
    )
    formats = ("", "", ".3g", ".1g", ".2f", "+.3f", ".3f", ".2f", ".2f", ",.0f", "")
    table = DataTable(header, rows, formats)
    example = recommended[len(recommended) // 2].smallest.options.arguments
    command = f"{subject.build} {example}".rstrip()
    return PageSection("Which setting to ship", text, table=table, command=command)


def _label_and_size(result: SweepResult | None) -> str | None:
    if result is None:
        return None
    return f"{result.options.short_label}: {format_bytes(result.score.bytes)}"


def settings_sections(
    packs: Sequence[PackScore], results: Sequence[SweepResult], command: str
) -> list[PageSection]:
    """Return a table of every number of every pack; with several texts also one of each text."""
    changes = ("KL, nats", "±", "median", "99 %", "largest", "top 1, %", "± , %", "increase, %",
               "± , %", "perplexity", "±")  # fmt: skip
    formats = (".3g", ".1g", ".3g", ".3g", ".3g", ".2f", ".2f", "+.3f", ".3f", ".3f", ".3f")
    costs = ("MB", "× FP16", "bits a value", "read a token, B", "resident, B", "MACs a token")
    named = [(pack.name, pack, None) for pack in packs]
    swept = [(p.options.arguments or "(the defaults)", p.score, p.on_front) for p in results]
    front = {None: None, True: "yes", False: "no"}
    rows: tuple[tuple[str | float | None, ...], ...] = tuple(
        (name, *_changes(one), *_costs(one), front[on_front])
        for name, one, on_front in [*named, *swept]
    )
    table = DataTable(
        ("setting", *changes, *costs, "on the front"), rows,
        ("", *formats, ".2f", ".2f", ".2f", ",.0f", ",.0f", ",.0f", ""),
    )  # fmt: skip
    by_text: tuple[tuple[str | float | None, ...], ...] = tuple(
        (name, one.text, *_changes(one))
        for name, total, _ in [*named, *swept]
        for one in total.by_text
    )
    sections = [PageSection("All packs", table=table, command=command)]
    if by_text:
        table = DataTable(("setting", "text", *changes), by_text, ("", "", *formats))
        text = "The table above is over the windows of all texts; the worst text counts for limits."
        sections.append(PageSection("All packs, text by text", text, table=table, command=command))
    return sections


def _changes(score: PackScore) -> tuple[float, ...]:
    return (
        score.kl_mean_nats,
        score.kl_mean_se_nats,
        score.kl_median_nats,
        score.kl_p99_nats,
        score.kl_max_nats,
        score.top1_agreement_pct,
        score.top1_agreement_se_pct,
        score.ppl_increase_pct,
        score.ppl_increase_se_pct,
        score.ppl,
        score.ppl_se,
    )


def _costs(score: PackScore) -> tuple[float, ...]:
    return (
        score.bytes / 1e6,
        score.ratio_fp16,
        score.bits_per_weight,
        score.read_bytes_per_token,
        float(score.resident_bytes),
        float(score.macs_per_token),
    )


def details(score: PackScore) -> tuple[tuple[str, str], ...]:
    """Return the values that a chart shows beside a pack's point."""
    return (
        ("perplexity", f"{score.ppl:.3f} ± {score.ppl_se:.3f}"),
        ("increase", pack_increase(score)),
        ("KL divergence", f"{pack_divergence(score)} nats"),
        ("top 1 alike", pack_agreement(score)),
        ("size", f"{format_bytes(score.bytes)}, × {score.ratio_fp16:.2f}"),
        ("read a token", format_bytes(score.read_bytes_per_token)),
        ("MACs a token", f"{score.macs_per_token:,}"),
    )


def _setting_details(result: SweepResult) -> tuple[tuple[str, str], ...]:
    options = result.options.arguments or "(the defaults)"
    return (("tolpack build", options), *details(result.score))


def _increase(score: PackScore) -> tuple[float, float]:
    return score.ppl_increase_pct, score.ppl_increase_se_pct


def _divergence(score: PackScore) -> tuple[float, float]:
    return score.kl_mean_nats, score.kl_mean_se_nats


def _point(
    score: PackScore, measure: _Measure, label: str = "", shown: tuple[tuple[str, str], ...] = ()
) -> ChartPoint:
    return ChartPoint(score.bytes / 1e6, *measure(score), label, shown)
