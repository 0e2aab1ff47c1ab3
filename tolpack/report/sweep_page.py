"""The page of a sweep: the trade-off, which setting to ship, and all results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tolpack.report.evaluation_tables import (
    named_packs,
    pack_agreement,
    pack_divergence,
    pack_increase,
)
from tolpack.report.page_content import (
    LINEAR_PCT,
    Axis,
    Chart,
    ChartPoint,
    Page,
    PageSection,
    Series,
)
from tolpack.report.report_subject import ReportSubject, TradeOff, facts, lead, shown_warnings
from tolpack.report.setting_tables import (
    recommendation_section,
    settings_sections,
    stored_in_checkpoint,
)
from tolpack.report.tables import format_bytes
from tolpack.report.trade_off import family, pack_family
from tolpack.runtime.sizes import plus_minus

if TYPE_CHECKING:  # they load torch
    from tolpack.evaluation.experiment_runner import SweepResult
    from tolpack.evaluation.recommend import Recommendation
    from tolpack.evaluation.scores import Baseline, Evaluation, PackScore

# Gives a measure of a pack, and its standard error.
_Measure = Callable[["PackScore"], tuple[float, float | None]]
INCREASE = Axis("perplexity increase", "%", linear_below=LINEAR_PCT)
_SIZE = Axis("size of the pack", "MB", log=True)
_DIVERGENCE = Axis("mean KL divergence", "nats", log=True)


def sweep_page(
    subject: ReportSubject,
    evaluation: Evaluation,
    results: Sequence[SweepResult],
    skipped: Sequence[str],
    recommended: Sequence[Recommendation],
    warnings: tuple[str, ...] = (),
) -> Page:
    """Return the report of ``tolpack eval``; `warnings` say what makes its numbers doubtful."""
    packs, baseline = evaluation.packs, evaluation.baseline
    trade_off = TradeOff(subject, baseline, packs, tuple(results))
    sections = trade_off_sections(trade_off, skipped)
    if recommended:
        sections.append(recommendation_section(recommended, subject))
    sections += settings_sections(trade_off, text_charts(trade_off))
    return Page(
        title=f"{subject.checkpoint.name}: what packs change, against their size",
        lead=lead(baseline, evaluation.context, recommended),
        facts=facts(subject, evaluation.context, baseline),
        sections=tuple(sections),
        warnings=shown_warnings((*evaluation.warnings, *warnings)),
    )


def trade_off_sections(trade_off: TradeOff, skipped: Sequence[str]) -> list[PageSection]:
    """Return charts against size: of perplexity, and of KL divergence with its Pareto front."""
    reading = (
        "Lower and further left is better. Whiskers are standard errors; the vertical axis is "
    )
    increases = Chart(
        _SIZE, INCREASE, (*_series(trade_off, _increase), *_checkpoint(trade_off.baseline)),
        f"{reading}linear below {LINEAR_PCT:g} % and logarithmic above.",
    )  # fmt: skip
    divergences = Chart(
        _SIZE, _DIVERGENCE, (*_series(trade_off, _divergence), *_front(trade_off)),
        f"{reading}logarithmic. No pack is both smaller than one on the front and nearer to the "
        "checkpoint.",
    )  # fmt: skip
    text = "\n\n".join(f"Not built: {one}." for one in skipped)
    about = (
        "How far the predictions of a pack are from the checkpoint's own. Perplexity asks how well "
        "the text is predicted: on text unlike a model's training text it may fall as rows get "
        "worse. KL divergence does not, so packs are judged by it."
    )
    return [
        PageSection("Perplexity against size", text, (increases,)),
        PageSection("KL divergence against size", about, (divergences,)),
    ]


def _series(trade_off: TradeOff, measure: _Measure) -> list[Series]:
    """Return the packs of each kind of options."""
    points: dict[str, list[ChartPoint]] = {}
    for kind, point in _points(trade_off, measure):
        points.setdefault(kind, []).append(point)
    return [Series(kind, tuple(own)) for kind, own in points.items()]


def _points(trade_off: TradeOff, measure: _Measure) -> Iterator[tuple[str, ChartPoint]]:
    """Yield the kind of each pack, and its point."""
    for name, pack in named_packs(trade_off.packs):
        yield pack_family(pack), _point(pack, measure, name, details(pack))
    for one in trade_off.results:
        point = _point(one.score, measure, one.options.short_label, _setting_details(one))
        command = trade_off.subject.build_command(one.options)
        yield family(one), replace(point, command=command)


def _checkpoint(baseline: Baseline) -> tuple[Series, ...]:
    """Return the point of the checkpoint itself: the weights or the table that packs replace."""
    name, size = stored_in_checkpoint(baseline)
    if size is None:
        return ()
    return (Series(name, (ChartPoint(size / 1e6, 0.0, None, name),)),)


def _front(trade_off: TradeOff) -> tuple[Series, ...]:
    """Return the Pareto front, if it joins anything, with the name of each of its packs."""
    # Of packs with equal costs one is named.
    front = {(one.bytes, one.kl_mean_nats): one for one in reversed(trade_off.front)}
    labels = {id(one.score): one.options.short_label for one in trade_off.results}
    labels |= {id(pack): name for name, pack in named_packs(trade_off.packs)}
    points = tuple(_point(one, _divergence, labels[id(one)]) for one in reversed(front.values()))
    return (Series("Pareto front", points, "step"),) if len(points) > 1 else ()


def text_charts(trade_off: TradeOff) -> tuple[Chart, ...]:
    """Return a chart of the divergence on each of several texts."""
    if not trade_off.baseline.by_text:
        return ()
    points: dict[str, list[ChartPoint]] = {one.text: [] for one in trade_off.baseline.by_text}
    named = [*named_packs(trade_off.packs)]
    named += [(one.options.short_label, one.score) for one in trade_off.results]
    for name, score in named:
        for one in score.by_text:
            points[one.text].append(_point(one, _divergence, name, details(one)))
    series = tuple(Series(text, tuple(own)) for text, own in points.items())
    return (Chart(_SIZE, _DIVERGENCE, series, "The same packs on each of the texts."),)


def details(score: PackScore) -> tuple[tuple[str, str], ...]:
    """Return the values that a chart shows beside a pack's point."""
    return (
        ("perplexity", plus_minus(score.ppl, score.ppl_se, ",.3f")),
        ("increase", pack_increase(score)),
        ("KL divergence", f"{pack_divergence(score)} nats"),
        ("top 1 alike", pack_agreement(score)),
        ("size", f"{format_bytes(score.bytes)}, × {score.ratio_fp16:.2f}"),
        ("read a token", format_bytes(score.read_bytes_per_token)),
        ("MACs a token", f"{score.macs_per_token:,}"),
    )


def _setting_details(result: SweepResult) -> tuple[tuple[str, str], ...]:
    options = result.options.arguments
    return (("tolpack build", options), *details(result.score))


def _increase(score: PackScore) -> tuple[float, float | None]:
    return score.ppl_increase_pct, score.ppl_increase_se_pct


def _divergence(score: PackScore) -> tuple[float, float | None]:
    return score.kl_mean_nats, score.kl_mean_se_nats


def _point(
    score: PackScore, measure: _Measure, label: str = "", shown: tuple[tuple[str, str], ...] = ()
) -> ChartPoint:
    return ChartPoint(score.bytes / 1e6, *measure(score), label, shown)
