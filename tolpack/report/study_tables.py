"""A study as text for a terminal: a table for each part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tolpack.report.tables import format_bytes, format_table, sweep_table

if TYPE_CHECKING:  # it loads torch
    from tolpack.studying.choice import Choice
    from tolpack.studying.model_size import ModelCosts
    from tolpack.studying.study import Change, Study
    from tolpack.studying.sweep import SweepPoint


def study_text(study: Study, chosen: Sequence[Choice]) -> str:
    """Write all parts that were run, each under its title."""
    base = study.baseline
    parts = [
        f"{base.tokens} tokens in windows of {study.context}: perplexity "
        f"{base.ppl:.3f} ± {base.ppl_se:.2f}; increases are paired window by window"
    ]
    if study.packs:
        parts.append(f"Packs: perplexity against size\n\n{sweep_table(study.packs, study.skipped)}")
    if chosen:
        parts.append(f"Which setting to ship\n\n{choice_table(chosen)}")
    if study.ranks:
        parts.append(f"Ranks by loss against uniform ranks, at equal bytes\n\n{_ranks(study)}")
    if study.layers:
        parts.append(f"Layers without memory\n\n{_layers(study)}")
    if study.alphas:
        parts.append(f"The memory times α\n\n{_alphas(study)}")
    if study.spectra:
        parts.append(f"Spectra: components that hold the energy\n\n{_spectra(study)}")
    if study.costs is not None:
        parts.append(f"Weights and operations\n\n{_costs(study.costs, study.packs)}")
    return "\n\n\n".join(parts)


def choice_table(chosen: Sequence[Choice]) -> str:
    """Write the smallest pack for each limit, and what builds it."""
    header = ["increase + 2 errors", "bytes", "× FP16", "tolpack build …", "without a basis"]
    rows = [
        [
            f"at most {one.limit_pct:g} %",
            format_bytes(one.best.score.bytes),
            f"{one.best.score.ratio_fp16:.2f}",
            one.best.setting.options or "(the defaults)",
            "-" if one.plain is None else one.plain.setting.options or "(the defaults)",
        ]
        for one in chosen
    ]
    return format_table(header, rows)


def increase(change: Change) -> str:
    """Write an increase of perplexity with its standard error."""
    return f"{change.increase_pct:+.3f} ± {change.increase_se_pct:.3f} %"


def _ranks(study: Study) -> str:
    header = ["uniform rank", "bytes", "increase", "by loss: bytes", "increase", "lower by"]
    rows = [
        [
            pair.uniform.setting.rank,
            format_bytes(pair.uniform.score.bytes),
            f"{pair.uniform.score.ppl_increase_pct:+.3f} %",
            format_bytes(pair.by_loss.score.bytes),
            f"{pair.by_loss.score.ppl_increase_pct:+.3f} %",
            f"{pair.gain_pct:.3f} ± {pair.gain_se_pct:.3f} %",
        ]
        for pair in study.ranks
    ]
    return format_table(header, rows)


def _layers(study: Study) -> str:
    rows = [
        [
            str(run.first) if run.first == run.last else f"{run.first} … {run.last}",
            f"{run.change.ppl:.3f}",
            increase(run.change),
            str(run.change.tokens),
        ]
        for run in study.layers
    ]
    return format_table(["without layers", "perplexity", "increase", "tokens"], rows)


def _alphas(study: Study) -> str:
    rows = [
        [
            f"{point.alpha:.1f}",
            f"{point.change.ppl:.3f} ± {point.change.ppl_se:.2f}",
            increase(point.change),
        ]
        for point in study.alphas
    ]
    return format_table(["α", "perplexity", "increase"], rows)


def _spectra(study: Study) -> str:
    rows = [
        [
            str(one.layer), str(one.rank_90), str(one.rank_99), f"{one.effective_rank:.0f}",
            str(len(one.singular_values)),
        ]
        for one in study.spectra
    ]  # fmt: skip
    return format_table(["layer", "90 %", "99 %", "effective rank", "of"], rows)


def cost_rows(costs: ModelCosts, packs: tuple[SweepPoint, ...]) -> list[list[str]]:
    """Lines of what the memory is: FFNs, an FP16 table, each pack of the front."""
    rest = costs.head_macs + costs.other_macs
    table = 2 * costs.table_values
    ffn = 2 * costs.memory_weights
    rows = [
        ["memory FFNs, computed", format_bytes(ffn), f"{costs.memory_macs:,}",
         f"{rest + costs.memory_macs:,}"],
        ["table in FP16, looked up", format_bytes(table), "0", f"{rest:,}"],
    ]  # fmt: skip
    for point in sorted(packs, key=lambda point: -point.score.bytes):
        if point.on_front:
            macs = point.score.macs_per_token
            name = f"pack: {point.setting.label}"
            rows.append([name, format_bytes(point.score.bytes), f"{macs:,}", f"{rest + macs:,}"])
    return rows


COST_HEADER = ("memory", "bytes (FFNs in 16 bits)", "its MACs/token", "MACs/token in all")


def _costs(costs: ModelCosts, packs: tuple[SweepPoint, ...]) -> str:
    total = costs.embedding_weights + costs.head_weights + costs.other_weights
    note = (
        f"other weights: {total:,} (embedding {costs.embedding_weights:,}, head "
        f"{costs.head_weights:,}, others {costs.other_weights:,}); MACs of weights only"
    )
    return f"{format_table(COST_HEADER, cost_rows(costs, packs))}\n\n{note}"
