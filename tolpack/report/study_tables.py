"""Text tables of a study, one for each part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tolpack.report.evaluation_tables import (
    pack_divergence,
    pack_increase,
    sweep_table,
    text_table,
)
from tolpack.report.legends import legend
from tolpack.report.tables import format_bytes, format_table
from tolpack.report.task_tables import task_table
from tolpack.runtime.sizes import plus_minus

if TYPE_CHECKING:  # it loads torch
    from tolpack.evaluation.experiment_runner import AblationResult, SweepResult
    from tolpack.evaluation.model_costs import ModelCosts
    from tolpack.evaluation.recommend import Recommendation
    from tolpack.evaluation.study import Study
    from tolpack.evaluation.sweep_grid import PackOptions


def study_text(study: Study, recommended: Sequence[Recommendation]) -> str:
    """Write a table for each part that was run, under its title."""
    base = study.baseline
    parts = [
        f"{base.tokens:,} tokens in windows of {study.context:,}: perplexity "
        + plus_minus(base.ppl, base.ppl_se, ",.3f", ",.2f")
        + "; increases are paired window by window"
    ]
    if study.packs:
        table = sweep_table(study.packs, study.skipped)
        parts.append(f"Packs: what they change, against their size\n\n{table}")
    if study.packs and base.by_text:
        named = [(one.options.label, one.score) for one in study.packs]
        parts.append(f"Packs, text by text\n\n{text_table(base, named)}")
    if recommended:
        parts.append(f"Which setting to ship\n\n{recommendation_table(recommended)}")
    if study.ranks:
        parts.append(f"Ranks by loss against uniform ranks, in no more bytes\n\n{_ranks(study)}")
    if study.layers:
        parts.append(f"Layers without memory\n\n{_layers(study)}")
    if study.alphas:
        parts.append(f"The memory times α\n\n{_alphas(study)}")
    if study.tasks:
        parts.append(f"Tasks of lm-eval\n\n{task_table(study.tasks)}")
    if study.spectra:
        parts.append(f"Spectra: components that hold the energy\n\n{_spectra(study)}")
    if study.costs is not None:
        parts.append(f"Weights and operations\n\n{_costs(study.costs, study.packs)}")
    return "\n\n\n".join(parts)


def recommendation_table(recommended: Sequence[Recommendation]) -> str:
    """Write the smallest pack for each limit, and the arguments that build it."""
    header = [
        "KL, nats",
        "measured",
        "increase",
        "bytes",
        "read/token",
        "× FP16",
        "tolpack build …",
        "without a basis",
    ]
    rows = [
        [
            f"at most {one.limit_nats:g}",
            pack_divergence(one.smallest.score),
            pack_increase(one.smallest.score),
            format_bytes(one.smallest.score.bytes),
            format_bytes(one.smallest.score.read_bytes_per_token),
            f"{one.smallest.score.ratio_fp16:.2f}",
            one.smallest.options.arguments,
            "-" if one.without_basis is None else one.without_basis.options.arguments,
        ]
        for one in recommended
    ]
    note = "KL at most: of the divergence and two of its standard errors, on the worst text"
    return f"{format_table(header, rows)}\n\n{note}"


def ablation_increase(result: AblationResult) -> str:
    """Write an ablation's increase of perplexity with its standard error."""
    return f"{plus_minus(result.increase_pct, result.increase_se_pct, '+,.3f')} %"


def _ranks(study: Study) -> str:
    header = ["uniform rank", "bytes", "increase", "KL, nats", "by loss: bytes", "increase",
              "KL, nats", "lower by"]  # fmt: skip
    rows = [
        [
            pair.uniform.options.rank,
            format_bytes(pair.uniform.score.bytes),
            pack_increase(pair.uniform.score),
            pack_divergence(pair.uniform.score),
            format_bytes(pair.by_loss.score.bytes),
            pack_increase(pair.by_loss.score),
            pack_divergence(pair.by_loss.score),
            f"{plus_minus(pair.gain_pct, pair.gain_se_pct, '.3f')} %",
        ]
        for pair in study.ranks
    ]
    return format_table(header, rows)


def _layers(study: Study) -> str:
    rows = [
        [
            str(one.first) if one.first == one.last else f"{one.first} … {one.last}",
            plus_minus(one.result.ppl, one.result.ppl_se, ",.3f", ",.2f"),
            ablation_increase(one.result),
            f"{one.result.tokens:,}",
        ]
        for one in study.layers
    ]
    return format_table(["without layers", "perplexity", "increase", "tokens"], rows)


def _alphas(study: Study) -> str:
    rows = [
        [
            f"{one.alpha:.1f}",
            plus_minus(one.result.ppl, one.result.ppl_se, ",.3f", ",.2f"),
            ablation_increase(one.result),
            f"{one.result.tokens:,}",
        ]
        for one in study.alphas
    ]
    return format_table(["α", "perplexity", "increase", "tokens"], rows)


def _spectra(study: Study) -> str:
    rows = [
        [
            str(one.layer), str(one.rank_90), str(one.rank_99), f"{one.effective_rank:.0f}",
            str(len(one.singular_values)),
        ]
        for one in study.spectra
    ]  # fmt: skip
    header = ["layer", "90 %", "99 %", "effective rank", "of"]
    return f"{format_table(header, rows)}\n\n{legend(header)}"


def cost_rows(costs: ModelCosts, packs: tuple[SweepResult, ...]) -> list[tuple[str, int, int, int]]:
    """Return bytes and operations of the memory: FFNs, an FP16 table, packs of the front."""
    rest = costs.head_macs + costs.other_macs
    rows = [
        ("memory FFNs, computed", 2 * costs.memory_weights, costs.memory_macs,
         rest + costs.memory_macs),
        ("table in FP16, looked up", 2 * costs.table_values, 0, rest),
    ]  # fmt: skip
    for result in sorted(packs, key=lambda result: -result.score.bytes):
        if result.on_front:
            macs = result.score.macs_per_token
            rows.append((_pack_name(result), result.score.bytes, macs, rest + macs))
    return rows


def pack_names(packs: Sequence[SweepResult]) -> list[tuple[str, PackOptions]]:
    """Return the names of packs in `cost_rows`, with their options."""
    return [(_pack_name(result), result.options) for result in packs]


def _pack_name(result: SweepResult) -> str:
    return f"pack: {result.options.short_label}"


COST_HEADER = ("memory", "bytes (FFNs in 16 bits)", "its MACs/token", "MACs/token in all")


def _costs(costs: ModelCosts, packs: tuple[SweepResult, ...]) -> str:
    total = costs.embedding_weights + costs.head_weights + costs.other_weights
    note = (
        f"other weights: {total:,} (embedding {costs.embedding_weights:,}, head "
        f"{costs.head_weights:,}, others {costs.other_weights:,}); MACs of weights only"
    )
    rows = [
        [name, format_bytes(size), f"{macs:,}", f"{whole:,}"]
        for name, size, macs, whole in cost_rows(costs, packs)
    ]
    return f"{format_table(COST_HEADER, rows)}\n\n{note}"
