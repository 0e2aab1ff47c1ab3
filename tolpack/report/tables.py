"""Text tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tolpack.container.provenance import Provenance
from tolpack.errors import printable
from tolpack.reading.verification import Damage
from tolpack.report.legends import build_legend, legend, without_rank
from tolpack.report.provenance_lines import beside_weights, made_from_lines
from tolpack.runtime.sizes import counted
from tolpack.runtime.sizes import format_bytes as format_bytes  # shown here, and by others

if TYPE_CHECKING:  # these load torch, which reading a pack does not need
    from tolpack.compress.build import BuildResult
    from tolpack.compress.size_prediction import SizePrediction
    from tolpack.evaluation.lookup_benchmark import LookupBenchmark
    from tolpack.export.convert import ConvertResult
    from tolpack.export.merge import MergeResult
    from tolpack.sources.checkpoint.description import CheckpointSummary
    from tolpack.sources.families.description import TablesSummary


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right."""
    cells = [list(map(printable, row)) for row in (header, *rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(header))]
    lines = []
    for row in cells:
        first, *rest = [
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join([first, *rest]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


# Columns of lower bounds on the bits a value (`tolpack.reading.code_rates`).
_BOUNDS = ("entropy", "R(D)")


def _bounds(entropy: float | None, gaussian: float | None, *, shown: bool) -> list[str]:
    """Return the cells of `_BOUNDS` for a layer, if any layer of the pack has codes."""
    if not shown:
        return []
    return ["-" if bits is None else f"{bits:.2f}" for bits in (entropy, gaussian)]


def build_table(result: BuildResult) -> str:
    """Write a line per layer of a built pack, then the totals."""
    coded = any(layer.entropy_bits is not None for layer in result.layers)
    several = len({layer.table for layer in result.layers}) > 1
    repeated = len({(one.table, one.layer) for one in result.layers}) < len(result.layers)
    rows = []
    for layer in result.layers:
        name = layer.field if repeated else str(layer.layer)
        dropped = layer.relative_error is None
        rows.append(
            [
                f"{layer.table} {name}" if several else name,
                "dropped" if dropped else str(layer.rank or "no basis"),
                "-" if dropped else f"{layer.bits:.2f}",
                *_bounds(layer.entropy_bits, layer.gaussian_bits, shown=coded),
                "-" if layer.relative_error is None else f"{layer.relative_error:.2%}",
                format_bytes(layer.bytes),
            ]
        )
    first = "table, layer" if several else "layer"
    header = [first, "rank", "bits", *_BOUNDS[: 2 * coded], "rel. error", "bytes"]
    table = format_table(header, rows)
    shown = without_rank(header, [layer.rank for layer in result.layers])
    meanings = build_legend(shown, [layer.relative_error for layer in result.layers])
    text = (
        f"{table}\n\n{meanings}\n\n{printable(str(result.path))}: {format_bytes(result.bytes)}, "
        f"× {result.ratio_fp16:.2f} smaller than FP16, {result.bits_per_weight:.2f} bits per value"
    )
    beside = beside_weights(result.bytes, result.provenance)
    text += "" if beside is None else f"; {beside}"
    return text + warning_lines(result.warnings)


def warning_lines(warnings: Sequence[str]) -> str:
    """Write warnings below a result, a line each; nothing if there are none."""
    lines = "\n".join(f"Warning: {warning}" for warning in warnings)
    return f"\n\n{lines}" if warnings else ""


def plan_table(plans: Sequence[SizePrediction]) -> str:
    """Write predicted costs, a line per plan; of a MemoryLLM also the paper's formula."""
    ffn_bytes, table_bytes = plans[0].ffn_bytes, plans[0].table_bytes
    stored, beside = ffn_bytes or table_bytes, "× FFN" if ffn_bytes else "× stored"
    header = ["rank", "bits", "bytes on disk", "× FP16", *([beside] if stored else []),
              "bits/value", "read/token", "resident", "MACs/token",
              "paper's formula"]  # fmt: skip
    columns = len(header) if ffn_bytes is not None else len(header) - 1
    rows = [
        [
            plan.rank,
            str(plan.bits),
            format_bytes(plan.bytes),
            f"{plan.ratio_fp16:.2f}",
            *([f"{stored / plan.bytes:.2f}"] if stored else []),
            f"{plan.bits_per_weight:.2f}",
            format_bytes(plan.read_bytes_per_token),
            format_bytes(plan.resident_bytes),
            f"{plan.macs_per_token:,}",
            format_bytes(plan.paper_bytes),
        ][:columns]
        for plan in plans
    ]
    text = f"{format_table(header[:columns], rows)}\n\n{_plan_legend(plans, header[:columns])}"
    if ffn_bytes is not None:
        text += f"\n\nmemory FFNs as stored in the checkpoint: {format_bytes(ffn_bytes)}"
        sixteen = plans[0].ffn_bytes_16
        if sixteen not in (None, ffn_bytes):
            text += f"; in 16 bits: {format_bytes(sixteen or 0)}"
        text += "; × FFN: how many times smaller a pack is than they are"
    elif table_bytes:
        text += f"\n\nas stored in the checkpoint: {format_bytes(table_bytes)}"
        text += "; × stored: how many times smaller a pack is than that"
    return text


def _plan_legend(plans: Sequence[SizePrediction], columns: Sequence[str]) -> str:
    """Return the legend of predictions, whose bits are the setting."""
    return legend(without_rank([n for n in columns if n != "bits"], [one.rank for one in plans]))


def measured_plan_table(plan: Mapping[str, Any]) -> str:
    """Write a plan (`tolpack.compress.plan.Plan.to_json`), a line per layer."""
    first = iter(plan["encodings"][0]["fields"])
    repeated = len({field["layer"] for field in plan["fields"]}) < len(plan["fields"])
    rows = []
    for field in plan["fields"]:
        name = field["name"] if repeated else str(field["layer"])
        if field["dropped"]:
            rows.append([name, "dropped", ""])
            continue
        parts = ", ".join(f"{part['values']} × {part['codec']}" for part in next(first))
        rank = "none" if field["rank"] is None else str(field["rank"])
        rows.append([name, rank, parts])
    text = format_table(["layer", "rank", "values of the first chunk"], rows)
    steps = [chunk["step"] for chunk in plan["chunks"] if chunk["step"] is not None]
    if steps:
        text += f"\n\n{legend(['step'])}"
    size = plan["predicted_bytes"]
    fp16_bytes = 2 * plan["rows"] * sum(field["width"] for field in plan["fields"])
    text += f"\n\nabout {format_bytes(size)}, × {fp16_bytes / size:.2f} smaller than FP16"
    text += f"; {counted(plan['rows'], 'row')} in {counted(len(plan['chunks']), 'chunk')}"
    if steps:
        text += f"; quantization steps {min(steps):g} … {max(steps):g}"
    return text


def checkpoint_table(summary: CheckpointSummary) -> str:
    """Write the tensors that were recognised in a checkpoint, and what it is ready for."""
    rotary = {None: "not said", True: "neighbouring pairs", False: "halves"}
    count, first = len(summary.files), summary.files[0]
    files = first if count == 1 else f"{count} files, {first} … {summary.files[-1]}"
    source = printable(f"{summary.path}: {summary.model_type}, names of {summary.key_map}, read "
                       f"from {files}")  # fmt: skip
    head = (
        f"{source}\n"
        f"{summary.vocab_size:,} tokens × {summary.num_layers} layers × {summary.hidden_size}, "
        f"rotary embeddings: {rotary[summary.rope_interleaved]}"
    )
    left = _left_over(summary.left_over, 20)
    ready = "\n".join(
        f"{name}: {'ready' if reason is None else printable(f'no: {reason}')}"
        for name, reason in (("build", summary.build), ("eval", summary.eval))
    )
    tensors = "\n".join(map(str, summary.tensors))
    return "\n\n".join([head, tensors, f"left over:{left or ' nothing'}", ready])


def family_table(summary: TablesSummary) -> str:
    """Write the tables of a checkpoint, and what else it holds."""
    header = ["table", "rows", "fields", "width", "dtype", "stored as", "bytes", "rows/token"]
    rows = [
        [
            table.name,
            f"{table.rows:,}",
            str(len(table.layers)),
            str(table.width),
            table.dtype,
            ", ".join(table.codecs),
            format_bytes(table.bytes),
            str(table.rows_per_token),
        ]
        for table in summary.tables
    ]
    lines = [printable(line) for table in summary.tables for line in table.source]
    notes = [
        f"{printable(table.name)}: the model multiplies its rows by {table.multiplier:g}"
        for table in summary.tables
        if table.multiplier != 1
    ]
    left = _left_over(summary.left_over, 5)
    kind = f" (model_type {printable(summary.model_type)})" if summary.model_type else ""
    return "\n\n".join(
        [
            f"{printable(summary.path)}{kind}",
            format_table(header, rows),
            "\n".join(dict.fromkeys([*lines, *notes])),
            f"left over, {len(summary.left_over)} tensors:{left or ' nothing'}",
            "build: ready" if summary.build is None else f"build: no: {summary.build}",
        ]
    )


def _left_over(names: Sequence[str], most: int) -> str:
    """Write names, a line each; nothing if there are none."""
    lines = [f"  {printable(name)}" for name in names[:most]]
    if len(names) > most:
        lines.append(f"  … and {len(names) - most} more")
    return "".join(f"\n{line}" for line in lines)


def pack_table(info: dict[str, Any], path: str) -> str:
    """Write the description of a pack, with a line per layer and per chunk."""
    head = f"{printable(path)}: format {info['format_version']}, made by "
    head += printable(info["producer"])
    if "base" in info:
        head += f"\nedits of the pack whose preamble and header have the SHA-256 {info['base']}"
    size = (
        f"{format_bytes(info['bytes'])}, × {info['ratio_fp16']:.2f} smaller than FP16, "
        f"{info['bits_per_weight']:.2f} bits per value"
    )
    if "part_files" in info:
        size += f", in {len(info['part_files'])} part files"
    made_from = Provenance.of(info["provenance"])
    beside, lines = beside_weights(info["bytes"], made_from), made_from_lines(made_from)
    origin = "\n".join([*([] if beside is None else [beside]), *lines])
    if "tables" not in info:
        first = "\n".join([head, _shape_line(info), f"{size}; {_cost_line(info)}"])
        return "\n\n".join(part for part in (first, origin, _parts(info)) if part)
    found = [f"{head}\n{len(info['tables'])} tables, {size}", *([origin] if origin else [])]
    for one in info["tables"]:
        name = f"{printable(one['name'])}: {_shape_line(one)}"
        found += [f"{name}\n{format_bytes(one['bytes'])}; {_cost_line(one)}", _parts(one)]
    return "\n\n".join(found)


def _shape_line(info: dict[str, Any]) -> str:
    dropped = ", ".join(map(str, info["dropped_layers"])) or "none"
    widths = "/".join(map(str, dict.fromkeys(layer["width"] for layer in info["layers"])))
    rows, heads = "tokens", ""
    if info["ngrams"] is not None:
        orders = info["ngrams"]["orders"]
        rows, heads = "rows", f", {len(orders)} for each token: n-grams up to {max(orders)}"
    line = f"{info['vocab_size']:,} {rows} × {info['num_layers']} layers × {widths}, "
    line += f"dropped layers: {dropped}{heads}"
    if "edits" in info:
        of = f"of {printable(info['edits']['table'])}, which has {info['edits']['rows']:,} rows"
        return f"{line}; {of}: {_listed(info['token_ids'])}"
    return line + f"; {info['edited_tokens']} {rows} edited" * bool(info["edited_tokens"])


def _listed(token_ids: Sequence[int], most: int = 8) -> str:
    more = f" and {len(token_ids) - most} more" if len(token_ids) > most else ""
    return f"token ids {', '.join(map(str, token_ids[:most]))}{more}"


def _cost_line(info: dict[str, Any]) -> str:
    resident, macs = format_bytes(info["resident_bytes"]), info["macs_per_token"]
    return f"resident {resident}, {macs:,} MACs per token"


def _parts(info: dict[str, Any]) -> str:
    """Write a table's layers and chunks; layers by name too, where they are not just numbered."""
    coded = any(n["entropy_bits"] is not None for n in info["layers"])
    named = any(layer["layer"] != number for number, layer in enumerate(info["layers"]))
    layers = [
        [
            *([printable(n["name"])] if named else []),
            str(n["layer"]),
            str(n["rank"] or "-"),
            f"{n['bits']:.2f}",
            *_bounds(n["entropy_bits"], n["gaussian_bits"], shown=coded),
            format_bytes(n["bytes"]),
        ]
        for n in info["layers"]
    ]
    chunks = [
        [
            str(number),
            f"{chunk['tokens']:,}",
            chunk["encoding"],
            str(chunk["rows_per_block"]),
            f"{chunk['bytes'] / chunk['tokens']:.0f} B",
            format_bytes(chunk["bytes"]),
        ]
        for number, chunk in enumerate(info["chunks"])
    ]
    columns = [*["field"] * named, "layer", "rank", "bits", *_BOUNDS[: 2 * coded], "bytes"]
    rows = "tokens" if info["ngrams"] is None else "rows"
    heads = ["chunk", rows, "encoding", "rows/block", f"per {rows[:-1]}", "bytes"]
    meanings = legend(without_rank(columns, [layer["rank"] for layer in info["layers"]]))
    found = [format_table(columns, layers), meanings, format_table(heads, chunks)]
    if info["coding"] is not None:
        found.append(_coding_line(info["coding"]))
    return "\n\n".join(found)


def _coding_line(coding: dict[str, Any]) -> str:
    """Write what rows coded by models take, next to what their codes cost."""
    per_cost = coding["stored_per_cost"]
    stored = "stored" if per_cost is None else f"stored {100 * (per_cost - 1):+.1f} %"
    sizes = {
        key: format_bytes(round(size)) for key, size in coding.items() if key != "stored_per_cost"
    }
    return (
        f"codes: {sizes['codes']} by the models, {sizes['entropy']} by their adaptive entropy; "
        f"{stored}: {sizes['states']} of states\n"
        f"beside them: checksums {sizes['checksums']}, index {sizes['index']}, models and classes "
        f"{sizes['models']}"
    )


def damage_line(damage: Damage, shown: int = 8) -> str:
    """Write a damage that `Pack.verify` found: place, the first of its tokens, and the error."""
    slots = f"slots {damage.first_slot} … {damage.first_slot + damage.rows - 1}"
    if damage.token_ranges is None:
        return f"{damage.place} (tokens unknown, {slots}): {damage.message}"
    runs = [
        str(first) if first == last else f"{first}-{last}" for first, last in damage.token_ranges
    ]
    rest = len(runs) - shown + damage.more_ranges
    more = f" and {rest} more runs" if rest > 0 else ""
    tokens = f"{counted(damage.rows, 'token')}: {', '.join(runs[:shown])}{more}"
    return f"{damage.place} ({tokens}; {slots}): {damage.message}"


def benchmark_table(result: LookupBenchmark) -> str:
    """Write a line per I/O mode and number of rows, then the advice."""
    rows = []
    for one in result.timings:
        times = [one.warm_p50_ms, one.warm_p99_ms, one.cold_p50_ms, one.cold_p99_ms]
        rows.append([one.io, str(one.rows), *("-" if ms is None else f"{ms:.3f}" for ms in times)])
    header = ["io", "rows", "warm p50 ms", "p99", "cold p50 ms", "p99"]
    return "\n\n".join([format_table(header, rows), *result.advice])


def merge_line(result: MergeResult) -> str:
    """Write path and size of a merged pack, and what was edited; old rows that are left in it."""
    count = sum(result.edited_tokens.values())
    line = f"{printable(str(result.path))}: {format_bytes(result.bytes)}, "
    line += counted(count, "edited token")
    left = result.old_rows_left
    if not left:
        return line
    return f"{line}; {counted(left, 'old row')} of them still in the file"


def convert_line(result: ConvertResult) -> str:
    """Write path, dtype, shape and size of a converted pack, and what was lost."""
    notes = []
    if result.dropped_layers:
        notes.append(f"zeros in dropped layers {', '.join(map(str, result.dropped_layers))}")
    if result.changed_values:
        notes.append(f"{result.changed_values:,} values rounded")
    multipliers = dict.fromkeys(table.multiplier for table in result.tables)
    if set(multipliers) != {1.0}:
        notes.append(f"not multiplied by {' and '.join(f'{one:g}' for one in multipliers)}")
    path, size = printable(str(result.path)), format_bytes(result.bytes)
    count = sum(len(table.tensors) for table in result.tables)
    shape = f"{count} tensors" if result.shape is None else str(list(result.shape))
    return "; ".join([f"{path}: {result.dtype} {shape}, {size}", *notes])
