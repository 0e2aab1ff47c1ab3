"""What the columns of tables mean, in lines below them: only of the columns that are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# From here on a layer's relative error looks like a fault.
_LARGE_ERROR = 0.5
_MEANINGS = {
    "rank": "number of vectors in a layer's basis; its rows are stored as coefficients of them",
    "bits": "stored bits a value, scales included",
    "entropy": "bits a value that an ideal coder needs which learns how often each code occurs",
    "R(D)": "bits a value that a normal distribution of the same variance needs at least for the "
    "same error",
    "rel. error": "√(Σ‖row − packed row‖² / Σ‖row‖²) over a sample of the tokens",
    "step": "distance between neighbouring quantized values; coarser steps cost more and take "
    "fewer bytes",
    "× FP16": "how many times smaller than the FP16 table of all layers",
    "read/token": "bytes of the file that one lookup reads",
    "resident": "bytes that a reader keeps in memory",
    "MACs/token": "multiply–accumulates with a basis in one lookup",
    "90 %": "number of components that hold 90 % of the energy, the sum of squared singular values",
    "99 %": "number of components that hold 99 % of the energy",
    "effective rank": "number of components that would have the same entropy if they shared the "
    "energy equally",
    "of": "number of components that the layer has",
    "paper's formula": "vocabulary × layers × hidden size × bits / 8, plus a basis, without scales "
    "and header (arXiv 2602.00398)",
}
_COMPENSATED = (
    f"A relative error over {_LARGE_ERROR:.0%} of a layer is not a fault where layers compensate "
    "for each other, as those of a MemoryLLM do with --bits auto: a layer's rows then also make "
    "up for errors of the layers below it. eval measures what the pack costs."
)


def legend(columns: Iterable[str]) -> str:
    """Return a line for each of `columns` that needs an explanation, in their order."""
    lines = [f"{name}: {_MEANINGS[name]}" for name in columns if name in _MEANINGS]
    return "\n".join(lines)


def without_rank(columns: Sequence[str], ranks: Iterable[object]) -> list[str]:
    """Return `columns` without the rank, unless one of `ranks` is one: a number or a share."""
    shown = any(rank not in (None, "none") for rank in ranks)
    return [name for name in columns if shown or name != "rank"]


def build_legend(columns: Sequence[str], errors: Iterable[float | None]) -> str:
    """Return the legend of a built pack; `errors` are its layers' relative errors.

    Packs of entropy-coded rows have steps, which progress speaks of, and may have large errors.
    """
    coded = "entropy" in columns
    lines = [legend([*columns, "step"] if coded else columns)]
    if coded and any(error is not None and error > _LARGE_ERROR for error in errors):
        lines.append(_COMPENSATED)
    return "\n".join(lines)
