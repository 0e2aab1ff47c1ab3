"""``tolpack generate``: text that a checkpoint continues, with a pack in place of its memory."""

from __future__ import annotations

import sys
from typing import Any

import click

from tolpack.commands.options import (
    LOCATION,
    checkpoint_options,
    edits_option,
    json_option,
    print_json,
    take_checkpoint_options,
    tokenizer_option,
)
from tolpack.commands.terminal import Terminal, checked, print_piece
from tolpack.evaluation.generation_settings import (
    DEFAULT_TEMPERATURE,
    DEFAULT_TOKENS,
    GenerationSettings,
    parse_temperature,
)
from tolpack.report.generation_text import generation_text
from tolpack.storage.locations import Location

_LARGEST_SEED = 2**63 - 1


@click.command()
@click.argument("checkpoint", type=LOCATION)
@click.argument("words", nargs=-1, metavar="[PACK] PROMPT")
@click.option(
    "--tokens", type=click.IntRange(1), default=DEFAULT_TOKENS, show_default=True,
    help="Tokens to generate at most.",
)  # fmt: skip
@click.option(
    "--temperature", default=str(DEFAULT_TEMPERATURE), show_default=True,
    callback=checked(parse_temperature),
    help="0 takes the most likely token each time; a larger number gives more varied text.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0, _LARGEST_SEED), default=0, show_default=True,
    help="Seed of the random choices; the same seed gives the same text.",
)  # fmt: skip
@edits_option
@tokenizer_option
@checkpoint_options
@click.option("--threads", type=click.IntRange(1), help="Cores to use [default: all].")
@json_option
def generate(checkpoint: Location, words: tuple[str, ...], as_json: bool, **settings: Any) -> None:
    """Continue PROMPT with CHECKPOINT, and with PACK in place of its memory FFNs.

    The prompt and the text go to standard output as they are generated; tokens, time and speed to
    standard error. A PROMPT of - is read from standard input. Control characters in the text are
    shown as \\x1b; --json gives them as they are.

    The text ends after --tokens, at the model's end-of-text token (eos_token_id of the model's
    configuration, else the tokenizer's), or where the model's positions end. With --temperature 0
    the text of a lossless pack is that of the checkpoint.

    The reference decoder computes in float32 on the processor. Its speed compares packs; it is not
    that of a serving engine.

    \b
    tolpack generate model.pt "The with statement" --tokenizer tokenizer.json
    tolpack generate model/ model.tolpack "The with statement" --temperature 0
    tolpack generate model/ model.tolpack - --tokens 40 --json < prompt.txt
    """
    from tolpack.evaluation.text_generation import generate_text

    pack, prompt = _pack_and_prompt(words)
    options, threads = take_checkpoint_options(settings), settings.pop("threads")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    chosen = GenerationSettings(
        settings.pop("tokens"), parse_temperature(settings.pop("temperature")), settings.pop("seed")
    )
    shown: list[str] = []

    def show(piece: str) -> None:
        if not as_json:
            print_piece(piece if shown else prompt + piece)
            shown.append(piece)

    try:
        found = generate_text(
            checkpoint, prompt, pack, checkpoint_options=options, settings=chosen, show=show,
            reporter=Terminal(), **settings,
        )  # fmt: skip
    finally:
        if shown:
            click.echo()
    if as_json:
        print_json(found.to_json())
    else:
        for line in generation_text(found).split("\n"):
            Terminal().say(line)


def _pack_and_prompt(words: tuple[str, ...]) -> tuple[Location | None, str]:
    """Return the pack, if one is named, and the prompt.

    Raises
    ------
    UsageError
        There is no prompt, or it is not one word of the shell.
    """
    if not words or (len(words) == 1 and words[0].endswith(".tolpack")):
        raise click.UsageError('the prompt is missing: give it last, in quotes, like "The end"')
    if len(words) > 2:
        raise click.UsageError(
            f"{len(words) + 1} arguments are given, and CHECKPOINT [PACK] PROMPT are expected: put "
            "the prompt in quotes"
        )
    pack = None if len(words) == 1 else LOCATION.convert(words[0], None, None)
    return pack, _from_input() if words[-1] == "-" else words[-1]


def _from_input() -> str:
    """Return the prompt on standard input, without the end of its last line.

    Raises
    ------
    UsageError
        It is not UTF-8.
    """
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"the prompt on standard input is not UTF-8: {error}") from error
    return text.removesuffix("\n").removesuffix("\r")
