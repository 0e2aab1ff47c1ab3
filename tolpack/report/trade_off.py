"""Sweeps as a ``.csv`` and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tolpack.container.atomic_write import replacing
from tolpack.evaluation.pareto import on_front
from tolpack.report.plot_labels import TradeOffPoint
from tolpack.report.plots import plot_trade_off

if TYPE_CHECKING:  # they load torch
    from tolpack.evaluation.experiment_runner import SweepResult
    from tolpack.evaluation.scores import PackScore

_COLUMNS = ("rank", "bits", "drop", "size", "max_ppl_increase", "max_kld", "trellis", "path",
            "text", "bytes", "ratio_fp16", "bits_per_weight", "ppl", "ppl_se", "nll_nats", "tokens",
            "ppl_increase_pct", "ppl_increase_se_pct", "kl_mean_nats", "kl_mean_se_nats",
            "kl_median_nats",
            "kl_p99_nats", "kl_max_nats", "top1_agreement_pct", "top1_agreement_se_pct",
            "read_bytes_per_token", "resident_bytes", "macs_per_token",
            "build_seconds", "eval_seconds", "on_front")  # fmt: skip


def write_csv(packs: Sequence[PackScore], results: Sequence[SweepResult], path: Path) -> None:
    """Write a header, and a line per pack and result; a value that does not apply is empty.

    With several texts, a line over the windows of all is followed by one for each, which names it.

    Raises
    ------
    FileAccessError
        The file cannot be written.
    """
    lines = []
    for pack in packs:
        lines += [{**one.to_json(), "text": one.text} for one in (pack, *pack.by_text)]
    for result in results:
        values = result.to_json()
        values |= values["setting"]
        lines += [
            {**values, **one.to_json(), "path": None, "text": one.text}
            for one in (result.score, *result.score.by_text)
        ]
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(lines)
    with replacing(path) as file:
        file.write(text.getvalue().encode("utf-8"))


def plot_sweep(
    packs: Sequence[PackScore], results: Sequence[SweepResult], path: Path, title: str
) -> None:
    """Draw packs and results; see `tolpack.report.plots.plot_trade_off`."""
    front = front_of(packs, results)
    drawn = [_point(pack, pack_family(pack), pack.name, front) for pack in packs]
    drawn += [_point(one.score, family(one), one.options.short_label, front) for one in results]
    plot_trade_off(drawn, path, title)


def front_of(packs: Sequence[PackScore], results: Sequence[SweepResult]) -> list[PackScore]:
    """Return those of all packs that no other one is both smaller and nearer to the checkpoint
    than, smallest first.
    """
    scores = [*packs, *(one.score for one in results)]
    marks = on_front([(one.bytes, one.kl_mean_nats) for one in scores])
    front = (one for one, mark in zip(scores, marks) if mark)
    return sorted(front, key=lambda score: score.bytes)


def _point(score: PackScore, kind: str, label: str, front: Sequence[PackScore]) -> TradeOffPoint:
    return TradeOffPoint(
        score.bytes / 1e6, score.ppl_increase_pct, score.ppl_increase_se_pct or 0.0,
        score.kl_mean_nats, score.kl_mean_se_nats or 0.0, kind, label, score in front,
    )  # fmt: skip


def pack_family(pack: PackScore) -> str:
    """Return the kind of a pack that was given, in the words of `family`."""
    return pack.kind or "packs"


def family(result: SweepResult) -> str:
    """Return the kind of a result's options; each kind has its colour."""
    bits = "entropy-coded" if result.options.bits == "auto" else "fixed bits"
    basis = {"none": "no basis", "auto": "ranks by loss"}.get(result.options.rank, "uniform rank")
    return f"{bits}, {basis}"
