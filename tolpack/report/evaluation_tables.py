"""Text tables of what packs change and cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tolpack.errors import printable
from tolpack.report.tables import format_bytes, format_table
from tolpack.runtime.sizes import plus_minus

if TYPE_CHECKING:  # these load torch
    from tolpack.evaluation.experiment_runner import SweepResult
    from tolpack.evaluation.scores import Baseline, Evaluation, PackScore

# What a checkpoint stores, by the column that compares packs with it.
_STORED = {"× FFN": "memory FFNs", "× stored": "table"}
# Divergences that would take more decimals are written with an exponent.
_MOST_DECIMALS = 6
_CHANGES = ("perplexity", "increase", "KL mean, nats", "median", "99 %", "largest", "top 1")


def format_nats(nats: float, error: float | None = None) -> str:
    """Write a divergence with three significant digits, and its standard error with as many."""
    if not math.isfinite(nats) or nats == 0:
        shown = f"{nats:g}"
        return shown if not error else f"{shown} ± {error:.1g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(nats))))
    small = decimals > _MOST_DECIMALS
    shown = f"{nats:.2e}" if small else f"{nats:.{decimals}f}"
    if error is None:
        return shown
    return f"{shown} ± " + (f"{error:.0e}" if small else f"{error:.{decimals}f}")


def evaluation_table(evaluation: Evaluation) -> str:
    """Write what packs change and what they cost, a line each for the checkpoint and its packs."""
    base, packs = evaluation.baseline, evaluation.packs
    note = (
        f"{base.tokens:,} tokens in windows of {evaluation.context:,}; the increase is paired "
        "window by window"
    )
    weights = _stored_weights(base)
    if weights:
        note += f"; the checkpoint's bytes are its {_STORED[weights[0][0]]}"
    if base.tokens <= evaluation.context:
        note += "; one window gives no standard error: give a longer text, or a smaller --context"
    first = ["checkpoint", plus_minus(base.ppl, base.ppl_se, ",.3f", ",.2f")]
    if not packs:
        shown = format_bytes(weights[0][1]) if weights else "-"
        return f"{format_table(['', 'perplexity', 'bytes'], [[*first, shown]])}\n\n{note}"
    changes = [[*first, *[""] * (len(_CHANGES) - 1)]]
    changes += [[name, *_changes(pack)] for name, pack in named_packs(packs)]
    note += (
        "\nKL: divergence of a pack's predictions from the checkpoint's; top 1: how often both "
        "hold the same next token most likely\n× FP16: how many times smaller a pack is than the "
        "table in FP16"
    )
    if weights:
        note += f"; {weights[0][0]}: than the {_STORED[weights[0][0]]} as stored"
    return f"{format_table(['', *_CHANGES], changes)}\n\n{_pack_costs(evaluation)}\n\n{note}"


def named_packs(packs: Sequence[PackScore]) -> list[tuple[str, PackScore]]:
    """Return packs with the names of their files, or with their paths if two have one name."""
    names = [pack.name for pack in packs]
    if len(set(names)) < len(names):
        names = [" + ".join((pack.path, *pack.edits)) for pack in packs]
    return list(zip(names, packs))


def text_table(baseline: Baseline, packs: Sequence[tuple[str, PackScore]]) -> str:
    """Write what packs change on each of several texts; asterisks mark a pack's worst text, by
    KL divergence.
    """
    parts = []
    for number, base in enumerate(baseline.by_text):
        rows = [["checkpoint", "", plus_minus(base.ppl, base.ppl_se, ",.3f", ",.2f"), *[""] * 6]]
        for name, pack in packs:
            own = pack.by_text[number]
            worst = "*" if own == pack.worst_kl else ""
            rows.append([name, worst, *_changes(own)])
        table = format_table(["", "", *_CHANGES], rows)
        parts.append(f"{printable(base.text)}: {base.tokens:,} tokens\n\n{table}")
    return "\n\n".join([*parts, "* the text of a pack's largest KL divergence"])


def _changes(pack: PackScore) -> list[str]:
    return [
        plus_minus(pack.ppl, pack.ppl_se, ",.3f", ",.2f"),
        pack_increase(pack),
        pack_divergence(pack),
        *map(format_nats, (pack.kl_median_nats, pack.kl_p99_nats, pack.kl_max_nats)),
        pack_agreement(pack),
    ]


def _stored_weights(score: Baseline | PackScore) -> list[tuple[str, int]]:
    """Return what a pack replaces: the name of a column that compares with it, and its bytes."""
    if score.table_bytes is not None:
        return [("× stored", score.table_bytes)]
    found = [] if score.ffn_bytes is None else [("× FFN", score.ffn_bytes)]
    if score.ffn_bytes_16 not in (None, score.ffn_bytes):
        found.append(("× FFN, 16 bits", score.ffn_bytes_16 or 0))
    return found


def _pack_costs(evaluation: Evaluation) -> str:
    weights = _stored_weights(evaluation.baseline)
    header = ["", "bytes", "× FP16", *(column for column, _ in weights), "bits/value",
              "read/token", "resident", "MACs/token"]  # fmt: skip
    shown = format_bytes(weights[0][1]) if weights else "-"
    rows = [["checkpoint", shown, *[""] * (len(header) - 2)]]
    for name, pack in named_packs(evaluation.packs):
        rows.append(
            [
                name,
                format_bytes(pack.bytes),
                f"{pack.ratio_fp16:.2f}",
                *(f"{size / pack.bytes:.2f}" for _, size in weights),
                f"{pack.bits_per_weight:.2f}",
                format_bytes(pack.read_bytes_per_token),
                format_bytes(pack.resident_bytes),
                f"{pack.macs_per_token:,}",
            ]
        )
    return format_table(header, rows)


def pack_increase(pack: PackScore) -> str:
    """Write a pack's increase of perplexity with its standard error."""
    return f"{plus_minus(pack.ppl_increase_pct, pack.ppl_increase_se_pct, '+,.3f')} %"


def pack_divergence(pack: PackScore) -> str:
    """Write a pack's mean divergence with its standard error."""
    if pack.kl_mean_se_nats is None:
        return f"{format_nats(pack.kl_mean_nats)} ± n/a"
    return format_nats(pack.kl_mean_nats, pack.kl_mean_se_nats)


def pack_agreement(pack: PackScore) -> str:
    """Write how often a pack and its checkpoint hold the same token most likely."""
    return f"{plus_minus(pack.top1_agreement_pct, pack.top1_agreement_se_pct, '.2f')} %"


def sweep_table(results: Sequence[SweepResult], skipped: Sequence[str] = ()) -> str:
    """Write a line per pack, smallest first; an asterisk marks those on the Pareto front."""
    weights = _stored_weights(results[0].score)[:1] if results else []
    header = ["", "", "KL, nats", "top 1", "perplexity increase", "bytes", "× FP16",
              *(column for column, _ in weights), "bits/value", "read/token", "MACs/token",
              "build"]  # fmt: skip
    rows = [
        [
            result.options.label,
            "*" if result.on_front else "",
            pack_divergence(result.score),
            pack_agreement(result.score),
            pack_increase(result.score),
            format_bytes(result.score.bytes),
            f"{result.score.ratio_fp16:.2f}",
            *(f"{size / result.score.bytes:.2f}" for _, size in weights),
            f"{result.score.bits_per_weight:.2f}",
            format_bytes(result.score.read_bytes_per_token),
            f"{result.score.macs_per_token:,}",
            f"{result.build_seconds:.0f} s",
        ]
        for result in sorted(results, key=lambda result: result.score.bytes)
    ]
    notes = [
        "* no other setting is both smaller and nearer to the checkpoint by KL divergence",
        *(f"not built: {s}" for s in skipped),
    ]
    return f"{format_table(header, rows)}\n\n" + "\n".join(notes)
