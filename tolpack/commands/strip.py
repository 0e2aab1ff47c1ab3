"""``tolpack strip``: a model's folder with a pack in the place of its table."""

from __future__ import annotations

from pathlib import Path

import click

from tolpack.commands.options import PATH, json_option, print_json
from tolpack.commands.terminal import Terminal, echo
from tolpack.report.tables import format_bytes
from tolpack.runtime.sizes import counted


@click.command()
@click.argument("folder", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="The new folder.")
@click.option("--pack", type=PATH, required=True, help="The pack of the folder's table.")
@click.option("--no-verify", is_flag=True, help="Do not compare the pack's checksums first.")
@click.option("--force", is_flag=True, help="Replace a folder that strip wrote.")
@json_option
def strip(
    folder: Path, output: Path, pack: Path, no_verify: bool, force: bool, as_json: bool
) -> None:
    """Write FOLDER without its table, and with PACK, for transformers.

    FOLDER is a model with config.json and .safetensors: Gemma 3n, Gemma 4, Qwen4Exp, MemoryLLM.
    The new folder has all else: weights, configuration and tokenizer. It loads by tolpack.hf.load,
    and by from_pretrained where tolpack.hf is imported. Elsewhere from_pretrained refuses it.

    \b
    tolpack build gemma-3n-E2B-it/ -o ple.tolpack --bits 4
    tolpack strip gemma-3n-E2B-it/ -o gemma-3n-E2B-it-4bit/ --pack ple.tolpack
    """
    from tolpack.hf.stripping import strip as strip_folder

    result = strip_folder(
        folder, output, pack, verify=not no_verify, force=force, reporter=Terminal()
    )
    if as_json:
        print_json(result.to_json())
    else:
        removed = counted(len(result.removed_tensors), "tensor")
        removed += f" of {format_bytes(result.removed_bytes)}"
        for name in result.left_out:
            echo(f"left out: {name}")
        echo(
            f"{result.path}: {format_bytes(result.nbytes)}, of which {result.pack} takes "
            f"{format_bytes(result.pack_bytes)}; without {removed}"
        )
