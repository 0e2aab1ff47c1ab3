"""The performance table of README.md and docs/serving.md, from the results of the benchmarks.

python benchmarks/serving_table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MEMMAP, FFNS = "np.memmap FP16", "FFNs in bf16"


def main() -> None:
    """Print the table."""
    serve = json.loads((RESULTS / "serve.json").read_text("utf-8"))
    decode = json.loads((RESULTS / "decode_loop.json").read_text("utf-8"))
    print(table(serve, decode))


def table(serve: dict[str, Any], decode: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    warm = {(one["side"], one["rows"], one["in_a_row"]): one["ms"] for one in serve["warm"]}
    cold = {(one["pack"], one["side"], one["rows"]): one["ms"] for one in serve["cold"]}
    lines = ["| | tolpack | against | |", "|---|---|---|---|"]

    def add(name: str, ours: float, against: str, theirs: float) -> None:
        lines.append(
            f"| {name} | {_ms(ours)} | {against} {_ms(theirs)} | **{theirs / ours:.1f} ×** |"
        )

    for name, side in (("4 bits", "tolpack 4 bits"), ("entropy-coded", "tolpack entropy-coded")):
        for rows, in_a_row, note in ((512, 1, ""), (1, 10, ""), (1, 1, ", between other work")):
            add(f"{name}, float32, {_rows(rows)} warm{note}", warm[side, rows, in_a_row],
                "`np.memmap` of FP16", warm[MEMMAP, rows, in_a_row])  # fmt: skip
    ours = "ToLMemory int4, bf16"
    add("4 bits, `ToLMemory` in bfloat16, 512 rows warm", warm[ours, 512, 1],
        "`np.memmap` of FP16 to float32", warm[MEMMAP, 512, 1])  # fmt: skip
    add("the same, one row", warm[ours, 1, 1], "the FFNs in bfloat16", warm[FFNS, 1, 1])
    ours = "ToLMemory rank 1024, bf16"
    for rows in (512, 1):
        add(f"4 bits, rank 1024, `ToLMemory` in bfloat16, {_rows(rows)}", warm[ours, rows, 1],
            "the FFNs in bfloat16", warm[FFNS, rows, 1])  # fmt: skip
    add("4 bits, 2,048 rows cold", cold["int4", "tolpack io=auto", 2048],
        "`np.memmap` of FP16", cold["int4", MEMMAP, 2048])  # fmt: skip
    best = min(ms for (pack, side, rows), ms in cold.items()
               if (pack, rows) == ("int4", 2048) and side.startswith("pread"))  # fmt: skip
    add("… fetching them alone", cold["int4", "fetching alone, io=auto", 2048],
        "the best raw reads of the same extents", best)  # fmt: skip
    add("4 bits, one row cold", cold["int4", "tolpack io=auto", 1], "one raw read of its extent",
        cold["int4", "one pread", 1])  # fmt: skip
    ffn, pack = decode["ffn"], decode["pack"]
    add("a whole decoder at 1B, bfloat16, batch 1, per token", pack["ms_per_token"],
        "with FFNs", ffn["ms_per_token"])  # fmt: skip
    theirs, less = ffn["resident_bytes"], pack["resident_bytes"]
    lines.append(
        f"| … its resident memory | {less / 1e9:.2f} GB | with FFNs {theirs / 1e9:.2f} GB "
        f"| **{theirs / less:.1f} ×** |"
    )
    return "\n".join(lines)


def _ms(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 2 else f"{1e3 * ms:,.0f} µs"


def _rows(rows: int) -> str:
    return "one row" if rows == 1 else f"{rows:,} rows"


if __name__ == "__main__":
    main()
