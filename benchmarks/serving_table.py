"""The table of lookup speed in README.md, from the results of `serve.py` and `decode_loop.py`.

Comparisons that tolpack wins come first, then those that it loses, each with the largest ratio
first. Raw reads of the same bytes stand apart: they are the disk's limit, not an alternative.

python benchmarks/serving_table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
MEMMAP, FFNS = "np.memmap FP16", "FFNs in bf16"
READS_FP16, COMPUTES = "`np.memmap` of FP16", "the FFNs in bfloat16"


class Row(NamedTuple):
    """One comparison: a lookup, tolpack's milliseconds, the alternative and its milliseconds."""

    lookup: str
    ms: float
    alternative: str
    alternative_ms: float

    @property
    def ratio(self) -> float:
        """Return how many times faster tolpack is; below 1 it is slower."""
        return self.alternative_ms / self.ms

    def markdown(self) -> str:
        """Return the comparison as a line of the table."""
        return (
            f"| {self.lookup} | {_ms(self.ms)} | {self.alternative} {_ms(self.alternative_ms)} "
            f"| **{self.ratio:.1f} ×** |"
        )


def main() -> None:
    """Print the table."""
    serve = json.loads((RESULTS / "serve.json").read_text("utf-8"))
    decode = json.loads((RESULTS / "decode_loop.json").read_text("utf-8"))
    print(table(serve, decode))


def table(serve: dict[str, Any], decode: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    cold = {(one["pack"], one["side"], one["rows"]): one["ms"] for one in serve["cold"]}
    rows = [*warm_rows(serve), cold_row(cold), decode_row(decode)]
    rows.sort(key=lambda row: row.ratio, reverse=True)
    return "\n".join(
        [
            "| lookup | tolpack | alternative | times as fast |",
            "|---|---|---|---|",
            "| **faster** | | | |",
            *(row.markdown() for row in rows if row.ratio >= 1),
            "| **slower** | | | |",
            *(row.markdown() for row in rows if row.ratio < 1),
            "| **against the disk: raw reads of the same bytes** | | | |",
            *(row.markdown() for row in raw_read_rows(cold)),
            "| **resident memory** | | | |",
            memory_line(decode),
        ]
    )


def warm_rows(serve: dict[str, Any]) -> list[Row]:
    """Return the lookups of rows that are in the page cache."""
    warm = {(one["side"], one["rows"], one["in_a_row"]): one["ms"] for one in serve["warm"]}
    rows = []
    for name, side in (("4 bits", "tolpack 4 bits"), ("entropy-coded", "tolpack entropy-coded")):
        for count, in_a_row, note in ((512, 1, ""), (1, 10, ""), (1, 1, ", between other work")):
            rows.append(
                Row(f"{name}, float32, {_rows(count)} warm{note}", warm[side, count, in_a_row],
                    READS_FP16, warm[MEMMAP, count, in_a_row])
            )  # fmt: skip
    side = "ToLMemory int4, bf16"
    rows += [
        Row("4 bits, `ToLMemory` in bfloat16, 512 rows warm", warm[side, 512, 1],
            f"{READS_FP16} to float32", warm[MEMMAP, 512, 1]),
        Row("4 bits, `ToLMemory` in bfloat16, one row warm, between other work",
            warm[side, 1, 1], COMPUTES, warm[FFNS, 1, 1]),
    ]  # fmt: skip
    side = "ToLMemory rank 1024, bf16"
    for count, note in ((512, ""), (1, ", between other work")):
        rows.append(
            Row(f"4 bits, rank 1024, `ToLMemory` in bfloat16, {_rows(count)} warm{note}",
                warm[side, count, 1], COMPUTES, warm[FFNS, count, 1])
        )  # fmt: skip
    return rows


def cold_row(cold: dict[tuple[str, str, int], float]) -> Row:
    """Return the lookup of many rows that are not in the page cache."""
    return Row("4 bits, float32, 2,048 rows cold", cold["int4", "tolpack io=auto", 2048],
               READS_FP16, cold["int4", MEMMAP, 2048])  # fmt: skip


def raw_read_rows(cold: dict[tuple[str, str, int], float]) -> list[Row]:
    """Return cold lookups against reads of the same extents without decoding."""
    best = min(ms for (pack, side, rows), ms in cold.items()
               if (pack, rows) == ("int4", 2048) and side.startswith("pread"))  # fmt: skip
    return [
        Row("4 bits, 2,048 rows cold, read but not decoded",
            cold["int4", "fetching alone, io=auto", 2048], "the fastest raw reads", best),
        Row("4 bits, one row cold", cold["int4", "tolpack io=auto", 1], "one raw read",
            cold["int4", "one pread", 1]),
    ]  # fmt: skip


def decode_row(decode: dict[str, Any]) -> Row:
    """Return the time of a decoder's step with a pack and with FFNs."""
    times = [decode[side]["ms_per_token"] for side in ("pack", "ffn")]
    return Row("a whole decoder at 1B, bfloat16, batch 1, one token", times[0], COMPUTES, times[1])


def memory_line(decode: dict[str, Any]) -> str:
    """Return the decoder's resident memory with a pack and with FFNs."""
    ours, theirs = (decode[side]["resident_bytes"] for side in ("pack", "ffn"))
    return (
        f"| a whole decoder at 1B, bfloat16 | {ours / 1e9:.2f} GB "
        f"| {COMPUTES} {theirs / 1e9:.2f} GB | **{theirs / ours:.1f} ×** smaller |"
    )


def _ms(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 2 else f"{1e3 * ms:,.0f} µs"


def _rows(rows: int) -> str:
    return "one row" if rows == 1 else f"{rows:,} rows"


if __name__ == "__main__":
    main()
