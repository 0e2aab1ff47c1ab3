"""Tables of a report whose rows are settings: which one to ship, and all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tolpack.report.evaluation_tables import (
    format_nats,
    named_packs,
    pack_agreement,
    pack_divergence,
    pack_increase,
)
from tolpack.report.page_content import Cell, CellContent, Chart, DataTable, PageSection
from tolpack.report.report_subject import ReportSubject, TradeOff
from tolpack.report.tables import format_bytes
from tolpack.runtime.sizes import plus_minus

if TYPE_CHECKING:  # they load torch
    from tolpack.evaluation.experiment_runner import SweepResult
    from tolpack.evaluation.recommend import Recommendation
    from tolpack.evaluation.scores import Baseline, PackScore

# What follows a name: size and change first.
SIZE_AND_CHANGE = ("size", "KL divergence, nats", "perplexity increase", "read a token")
_CHANGES = ("median KL", "99\u00a0%", "largest", "top 1", "perplexity")
_COSTS = ("×\u00a0FP16", "bits a value", "resident", "MACs a token")


def setting_cell(result: SweepResult, subject: ReportSubject, note: str = "") -> Cell:
    """Return the arguments of a setting, with a button for the whole command that builds it."""
    arguments = result.options.arguments
    return Cell(arguments, note=note, command=subject.build_command(result.options))


def size_cell(size_bytes: float | None) -> CellContent:
    """Return a number of bytes in a decimal unit."""
    return None if size_bytes is None else Cell(format_bytes(size_bytes), float(size_bytes))


def increase_cell(score: PackScore) -> Cell:
    """Return the increase of perplexity with its standard error."""
    return Cell(pack_increase(score), score.ppl_increase_pct)


def divergence_cell(score: PackScore) -> Cell:
    """Return the mean divergence with its standard error."""
    return Cell(pack_divergence(score), score.kl_mean_nats)


def size_and_change(score: PackScore) -> tuple[CellContent, ...]:
    """Return the cells of `SIZE_AND_CHANGE`."""
    return (
        size_cell(score.bytes),
        divergence_cell(score),
        increase_cell(score),
        size_cell(score.read_bytes_per_token),
    )


def recommendation_section(
    recommended: Sequence[Recommendation], subject: ReportSubject
) -> PageSection:
    """Return a table of the options to ship, for each limit."""
    header = ("build it with", *SIZE_AND_CHANGE, "×\u00a0FP16", "top 1", "MACs a token",
              "without a basis")  # fmt: skip
    rows = tuple(_recommended(one, subject) for one in recommended)
    text = (
        "The smallest pack whose KL divergence, two standard errors above what was measured, stays "
        "within a limit; on the worst text, if there are several. A basis makes packs smaller, and "
        "its multiply-adds are paid for every token; the last column is the smallest pack that "
        "needs none. A lookup reads the bytes of the column “read a token” from the file."
    )
    table = DataTable(header, rows, ("",) * 5 + (".2f",))
    command = subject.build_command(recommended[len(recommended) // 2].smallest.options)
    return PageSection("Which setting to ship", text, table=table, command=command)


def _recommended(one: Recommendation, subject: ReportSubject) -> tuple[CellContent, ...]:
    score, other = one.smallest.score, one.without_basis
    note = f"KL at most {one.limit_nats:g} nats"
    return (
        setting_cell(one.smallest, subject, note),
        *size_and_change(score),
        score.ratio_fp16,
        Cell(pack_agreement(score), score.top1_agreement_pct),
        Cell(f"{score.macs_per_token:,}", float(score.macs_per_token)),
        None if other is None else setting_cell(other, subject, _size_and_read(other.score)),
    )


def _size_and_read(score: PackScore) -> str:
    size, read = format_bytes(score.bytes), format_bytes(score.read_bytes_per_token)
    return f"{size}, reads {read} a token"


def settings_sections(trade_off: TradeOff, by_text: tuple[Chart, ...]) -> list[PageSection]:
    """Return a table of every number of every pack, below the checkpoint's own; with several texts
    also one of each text, below the charts `by_text`.
    """
    baseline, front = trade_off.baseline, trade_off.front
    named = [(Cell(name), pack) for name, pack in named_packs(trade_off.packs)]
    named += [(setting_cell(one, trade_off.subject), one.score) for one in trade_off.results]
    rows = tuple(
        (replace(name, note="on the Pareto front" * (one in front)), *size_and_change(one),
         *_changes(one), *_costs(one))
        for name, one in named
    )  # fmt: skip
    header = ("setting", *SIZE_AND_CHANGE, *_CHANGES, *_COSTS)
    table = DataTable(header, (_checkpoint_row(baseline), *rows), ("",) * 10 + (".2f", ".2f"))
    sections = [PageSection("All packs", table=table)]
    if baseline.by_text:
        sections.append(replace(_text_by_text(baseline, named), charts=by_text))
    return sections


def stored_in_checkpoint(baseline: Baseline) -> tuple[str, int | None]:
    """Return a name for what packs replace in the checkpoint, and its bytes as stored."""
    if baseline.table_bytes is not None:
        return "the checkpoint, its table", baseline.table_bytes
    if baseline.ffn_bytes is not None:
        return "the checkpoint, its memory FFNs", baseline.ffn_bytes
    return "the checkpoint", None


def _checkpoint_row(baseline: Baseline) -> tuple[CellContent, ...]:
    """Return the row of the checkpoint itself, whose size is that of what packs replace."""
    name, size = stored_in_checkpoint(baseline)
    none = (None,) * len(_COSTS)
    return (name, size_cell(size), *_unchanged(baseline), *none)


def _unchanged(baseline: Baseline, read: bool = True) -> tuple[CellContent, ...]:
    zeros = (Cell("0", 0.0), Cell("0 %", 0.0), *([None] if read else []))
    top = Cell("100 %", 100.0)
    return (*zeros, *[Cell("0", 0.0)] * 3, top, Cell(_perplexity(baseline), baseline.ppl))


def _text_by_text(baseline: Baseline, named: Sequence[tuple[Cell, PackScore]]) -> PageSection:
    """Return a table with a row for each pack and text, text by text."""
    rows: list[tuple[CellContent, ...]] = []
    for number, own in enumerate(baseline.by_text):
        rows.append(("the checkpoint", own.text, *_unchanged(own, read=False)))
        for name, total in named:
            one = total.by_text[number]
            rows.append((name, one.text, divergence_cell(one), increase_cell(one), *_changes(one)))
    table = DataTable(("setting", "text", *SIZE_AND_CHANGE[1:3], *_CHANGES), tuple(rows))
    text = "The table above is over the windows of all texts; the worst text counts for limits."
    return PageSection("All packs, text by text", text, table=table)


def _changes(score: PackScore) -> tuple[CellContent, ...]:
    nats = (score.kl_median_nats, score.kl_p99_nats, score.kl_max_nats)
    return (
        *(Cell(format_nats(one), one) for one in nats),
        Cell(pack_agreement(score), score.top1_agreement_pct),
        Cell(_perplexity(score), score.ppl),
    )


def _perplexity(score: Baseline | PackScore) -> str:
    return plus_minus(score.ppl, score.ppl_se, ",.3f")


def _costs(score: PackScore) -> tuple[CellContent, ...]:
    return (
        score.ratio_fp16,
        score.bits_per_weight,
        size_cell(score.resident_bytes),
        Cell(f"{score.macs_per_token:,}", float(score.macs_per_token)),
    )
