"""The page of a study: a section for each of the paper's questions (arXiv 2602.00398)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tolpack.evaluation import STUDY_PARTS
from tolpack.report.evaluation_tables import pack_agreement
from tolpack.report.page_content import (
    LINEAR_PCT,
    Axis,
    Cell,
    CellContent,
    Chart,
    ChartPoint,
    DataTable,
    Heatmap,
    Page,
    PageSection,
    Series,
)
from tolpack.report.report_subject import (
    PACKS,
    ReportSubject,
    TradeOff,
    facts,
    lead,
    shown_warnings,
)
from tolpack.report.setting_tables import (
    SIZE_AND_CHANGE,
    recommendation_section,
    setting_cell,
    settings_sections,
    size_and_change,
    size_cell,
)
from tolpack.report.study_tables import COST_HEADER, ablation_increase, cost_rows, pack_names
from tolpack.report.sweep_page import INCREASE, details, text_charts, trade_off_sections
from tolpack.report.task_tables import task_section
from tolpack.runtime.sizes import plus_minus

if TYPE_CHECKING:  # they load torch
    from tolpack.evaluation.experiment_runner import AblationResult
    from tolpack.evaluation.recommend import Recommendation
    from tolpack.evaluation.study import LayerAblation, Study

# Perplexities of the paper's 1B model: Tables 1 (α) and 7 (bits).
_PAPER_ALPHA = {1.0: 24.348, 0.9: 24.652, 0.8: 25.517, 0.7: 27.457, 0.6: 32.614, 0.5: 53.707}
_PAPER_BITS = {16: 24.348, 8: 24.347, 4: 24.439}
_MOST_SINGULAR_VALUES = 256
_ABLATION = ("perplexity increase", "perplexity", "tokens")


def study_page(
    subject: ReportSubject,
    study: Study,
    recommended: Sequence[Recommendation],
    warnings: tuple[str, ...] = (),
) -> Page:
    """Return the report of ``tolpack study``; parts that were not run have no section, and
    `warnings` say what makes its numbers doubtful.
    """
    trade_off = TradeOff(subject, study.baseline, (), study.packs)
    sections: list[PageSection] = []
    if study.packs:
        sections += trade_off_sections(trade_off, study.skipped)
    if recommended:
        sections.append(recommendation_section(recommended, subject))
    found = (make(study, subject) for make in _SECTIONS)
    sections += [section for section in found if section is not None]
    if study.tasks:
        sections.append(task_section(study.tasks))
    if study.packs:
        sections += settings_sections(trade_off, text_charts(trade_off))
    *conditions, command = facts(subject, study.context, study.baseline)
    parts = ("one part alone", f"the command below with --only and one of {', '.join(STUDY_PARTS)}")
    return Page(
        title=f"{subject.checkpoint.name}: what its memory is worth",
        lead=lead(study.baseline, study.context, recommended, _shown(study)),
        facts=(*conditions, parts, command),
        sections=tuple(sections),
        warnings=shown_warnings(warnings),
    )


def _shown(study: Study) -> str:
    """Say what a study shows: of one without packs, what each of its parts does."""
    if study.packs:
        return PACKS
    parts = (
        (study.layers, "What the perplexity becomes when the memory of some layers is left out."),
        (study.alphas, "What the perplexity becomes when all memory outputs are scaled."),
        (study.tasks, "How the model answers the tasks of lm-eval."),
        (study.spectra, "How many components hold the energy of a layer's rows."),
        (study.costs, "How many weights and operations the memory takes."),
    )
    return " ".join(text for found, text in parts if found) or "No pack could be built."


def _precision(study: Study, subject: ReportSubject) -> PageSection | None:
    plain = [p for p in study.packs if p.options.rank == "none" and p.options.bits in _PAPER_BITS]
    if not plain:
        return None
    reference = _PAPER_BITS[16]
    rows = tuple(
        (
            replace(setting_cell(one, subject), text=str(one.options.bits)),
            *size_and_change(one.score),
            Cell(pack_agreement(one.score), one.score.top1_agreement_pct),
            one.score.ratio_fp16,
            100 * (_PAPER_BITS[int(one.options.bits)] / reference - 1),
        )
        for one in plain
    )
    header = ("bits", *SIZE_AND_CHANGE, "top 1", "×\u00a0FP16",
              "increase of the paper's 1B model, %")  # fmt: skip
    table = DataTable(header, rows, ("",) * 6 + (".2f", "+.2f"))
    text = (
        "Values rounded in groups of 64, without a basis: the paper's Table 7 on this checkpoint. "
        "Scales are counted in the size."
    )
    return PageSection("Precision", text, table=table)


def _ranks(study: Study, subject: ReportSubject) -> PageSection | None:
    if not study.ranks:
        return None
    names = tuple(f"rank {pair.uniform.options.rank}" for pair in study.ranks)
    both = (
        ("uniform ranks", [pair.uniform for pair in study.ranks]),
        ("ranks by loss", [pair.by_loss for pair in study.ranks]),
    )
    series = tuple(
        Series(
            name,
            tuple(
                ChartPoint(
                    number, one.score.ppl_increase_pct, one.score.ppl_increase_se_pct,
                    f"{names[number]}: {name}", details(one.score),
                    subject.build_command(one.options),
                )
                for number, one in enumerate(points)
            ),
        )
        for name, points in both
    )  # fmt: skip
    rows = tuple(
        (
            setting_cell(pair.uniform, subject),
            *size_and_change(pair.uniform.score),
            setting_cell(pair.by_loss, subject),
            *size_and_change(pair.by_loss.score),
            Cell(f"{plus_minus(pair.gain_pct, pair.gain_se_pct, '.3f')} %", pair.gain_pct),
        )
        for pair in study.ranks
    )
    header = ("uniform rank", *SIZE_AND_CHANGE, "ranks by loss", *SIZE_AND_CHANGE,
              "perplexity lower by")  # fmt: skip
    table = DataTable(header, rows)
    text = (
        "The paper truncates all layers to the same rank (Table 8) and leaves open whether ranks "
        "that differ do better. Here the second kind takes no more bytes than the first, both at "
        "4 bits; its ranks follow from what losing each component costs. The difference is "
        "paired window by window."
    )
    axis = Axis("uniform rank, and ranks by loss in no more bytes")
    caption = (
        f"Whiskers are standard errors; the vertical axis is linear below {LINEAR_PCT:g} % and "
        "logarithmic above."
    )
    chart = Chart(axis, INCREASE, series, caption, names)
    return PageSection("Uniform ranks or ranks by loss", text, (chart,), table)


def _layers(study: Study, subject: ReportSubject) -> PageSection | None:
    if not study.layers:
        return None
    count = 1 + max(one.last for one in study.layers)
    single = [one for one in study.layers if one.first == one.last]
    points = tuple(_layer_point(n, one) for n, one in enumerate(single))
    chart = Chart(
        Axis("layer without memory"), Axis("perplexity increase", "%"),
        (Series("one layer left out", points, "bars"),),
        "The layer's memory outputs are zeros; nothing makes up for them.",
        tuple(str(one.first) for one in single),
    )  # fmt: skip
    increases = {(one.first, one.last): one.result.increase_pct for one in study.layers}
    names = tuple(map(str, range(count)))
    values = tuple(
        tuple(increases.get((first, last)) for last in range(count)) for first in range(count)
    )
    heat = Heatmap(
        names, names, values, "perplexity increase", "%", "Runs of layers left out together.",
        row_label="first layer", column_label="last layer", log=True,
    )  # fmt: skip
    rows = tuple(
        (_range(one), *_cells(one.result), float(one.last - one.first + 1)) for one in study.layers
    )
    table = DataTable(("layers", *_ABLATION, "how many"), rows)
    text = (
        "Each layer's memory, and every run of neighbouring layers' memories, left out (the "
        "paper's Figures 4 and 12). A pack that drops layers with --bits auto folds them into "
        "their neighbours first; this does not."
    )
    return PageSection("Which layers matter", text, (chart, heat), table)


def _alpha(study: Study, subject: ReportSubject) -> PageSection | None:
    if not study.alphas:
        return None
    unscaled = ChartPoint(1.0, 0.0, None, "α = 1, the checkpoint itself")
    own = tuple(
        ChartPoint(
            one.alpha, one.result.increase_pct, one.result.increase_se_pct, f"α = {one.alpha:g}"
        )
        for one in study.alphas
    )
    reference = _PAPER_ALPHA[1.0]
    paper = tuple(
        ChartPoint(
            alpha, 100 * (ppl / reference - 1), None, f"α = {alpha:g}", (("perplexity", f"{ppl}"),)
        )
        for alpha, ppl in _PAPER_ALPHA.items()
    )
    series = (
        Series("this checkpoint", (unscaled, *own), "line"),
        Series("the paper's MemoryLLM, 1B", paper, "line"),
    )
    chart = Chart(Axis("α"), Axis("perplexity increase", "%", linear_below=1.0), series)
    rows = tuple((one.alpha, *_cells(one.result)) for one in study.alphas)
    table = DataTable(("α", *_ABLATION), rows, (".1f",))
    text = "All memory outputs times α (the paper's Table 1): how much the model leans on them."
    return PageSection("Scaling the memory", text, (chart,), table)


def _spectra(study: Study, subject: ReportSubject) -> PageSection | None:
    if not study.spectra:
        return None
    series = []
    for one in study.spectra:
        step = max(1, len(one.singular_values) // _MOST_SINGULAR_VALUES)
        shown = list(enumerate(one.singular_values, 1))[::step]
        points = tuple(ChartPoint(number, value) for number, value in shown)
        series.append(Series(f"layer {one.layer}", points, "line"))
    chart = Chart(
        Axis("component"), Axis("singular value, over the largest", log=True), tuple(series),
        "Each layer's rows around their mean, every token counted once.", ordered=True,
    )  # fmt: skip
    rows = tuple(
        (float(one.layer), float(one.rank_90), float(one.rank_99), one.effective_rank,
         float(len(one.singular_values)))
        for one in study.spectra
    )  # fmt: skip
    header = ("layer", "90 % of the energy", "99 %", "effective rank", "components")
    table = DataTable(header, rows, (".0f", ".0f", ".0f", ".0f", ".0f"))
    text = (
        "How many components hold a layer's energy (the paper's Figure 13). Energy is not loss: "
        "what a rank costs in perplexity is in the sections above."
    )
    return PageSection("Spectra", text, (chart,), table)


def _costs(study: Study, subject: ReportSubject) -> PageSection | None:
    if study.costs is None:
        return None
    costs = study.costs
    names = dict(pack_names(study.packs))
    rows = tuple(
        (
            Cell(name, command=subject.build_command(names[name])) if name in names else name,
            size_cell(size), float(macs), float(whole),
        )
        for name, size, macs, whole in cost_rows(costs, study.packs)
    )  # fmt: skip
    text = (
        "What stands for the memory at inference, and multiply-adds of weights for a token "
        "(attention's products with earlier tokens come on top). The other weights are "
        f"{costs.embedding_weights + costs.head_weights + costs.other_weights:,}."
    )
    table = DataTable(COST_HEADER, rows, ("", "", ",.0f", ",.0f"))
    return PageSection("Weights and operations", text, table=table)


def _cells(result: AblationResult) -> tuple[CellContent, ...]:
    perplexity = plus_minus(result.ppl, result.ppl_se, ",.3f")
    return (
        Cell(ablation_increase(result), result.increase_pct),
        Cell(perplexity, result.ppl),
        Cell(f"{result.tokens:,}", float(result.tokens)),
    )


def _range(one: LayerAblation) -> str:
    return str(one.first) if one.first == one.last else f"{one.first} … {one.last}"


def _layer_point(x: int, ablation: LayerAblation) -> ChartPoint:
    result = ablation.result
    shown = (
        ("perplexity", plus_minus(result.ppl, result.ppl_se, ",.3f")),
        ("increase", ablation_increase(result)),
        ("tokens", f"{result.tokens:,}"),
    )
    return ChartPoint(
        x, result.increase_pct, result.increase_se_pct, f"without layer {ablation.first}", shown
    )


_SECTIONS = (_precision, _ranks, _layers, _alpha, _spectra, _costs)
