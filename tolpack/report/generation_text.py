"""What ``tolpack generate`` says below its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tolpack.report.tables import format_bytes

if TYPE_CHECKING:  # it loads torch
    from tolpack.evaluation.text_generation import GeneratedText


def generation_text(found: GeneratedText) -> str:
    """Write tokens, time and speed in a line, what lookups read in another, and why it ended."""
    count, speed = len(found.token_ids), found.tokens_per_second
    lines = [
        f"{_tokens(count)} in {found.seconds:.2f} s, {found.prompt_seconds:.2f} s of it for the "
        f"prompt's {_tokens(found.prompt_tokens)}"
        + ("" if speed is None else f": {speed:.1f} tokens a second")
    ]
    if found.pack is not None and found.read_bytes_per_token is not None:
        lines.append(
            f"{found.pack}: lookups read {format_bytes(found.read_bytes_per_token)} a token"
        )
    if found.stopped == "end_of_text":
        lines.append("The model ended the text.")
    if found.stopped == "positions":
        lines.append(
            f"The text stops at the model's {found.positions:,} positions "
            "(max_position_embeddings): give a shorter prompt, or fewer --tokens."
        )
    return "\n".join(lines)


def _tokens(count: int) -> str:
    return f"{count:,} token" + ("" if count == 1 else "s")
