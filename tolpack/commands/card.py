"""``tolpack card``: a page about a pack for a model hub."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import click

from tolpack.commands.options import LOCATION, PATH, json_option, print_json
from tolpack.commands.terminal import Terminal, echo
from tolpack.container.atomic_write import check_output, refuse_existing, replacing
from tolpack.container.parts.manifest import MANIFEST_NAME
from tolpack.container.parts.parts_source import PartsSource
from tolpack.errors import ConfigError
from tolpack.pack import Pack
from tolpack.runtime.progress import Reporter
from tolpack.storage.locations import Location

_BLOCK_BYTES = 8 << 20


@click.command()
@click.argument("pack", type=LOCATION)
@click.option(
    "-o", "--output", type=PATH, help="The page, like README.md [default: standard output]."
)
@click.option(
    "--eval", "results", type=LOCATION, metavar="JSON",
    help="What tolpack eval --json printed of this pack: adds a table of its figures by text.",
)  # fmt: skip
@click.option(
    "--base-model", metavar="NAME", help="Name of the model on the hub that the pack is of."
)
@click.option("--license", "licence", metavar="NAME", help="Its license, like apache-2.0.")
@click.option("--force", is_flag=True, help="Replace an existing page.")
@json_option
def card(
    pack: Location, output: Path | None, results: Location | None, force: bool, as_json: bool,
    **named: Any,
) -> None:  # fmt: skip
    """Write a page about PACK for a model hub.

    The page is Markdown with the front matter that hubs read. It says what the file is, its size
    beside FP16 and beside the weights that it replaces, what it was made from and how, what it was
    measured to cost, and how to use and check it. The name of PACK is the only one of a file in it,
    beside those of texts that were evaluated; PACK is read once, for its SHA-256.

    \b
    tolpack card model.tolpack
    tolpack eval model/ model.tolpack --text held-out.txt --json > eval.json
    tolpack card model.tolpack --eval eval.json --base-model org/model -o README.md
    """
    from tolpack.evaluation.kept_results import read_results
    from tolpack.evaluation.pack_description import describe_pack
    from tolpack.pack import open_first_table
    from tolpack.report.model_card import CardSubject, evaluated, file_name, model_card

    terminal = Terminal()
    if output is not None:
        check_output(output, [pack, results])
        refuse_existing(output, force=force)
    found = None if results is None else read_results(results)
    base, licence = (_name(named, key) for key in ("base_model", "licence"))
    with open_first_table(pack) as opened:
        if opened.container.header.base is not None:
            raise ConfigError(f"{pack} holds edits of a pack: give the pack, or merge them into it")
        name = file_name(pack) or "model.tolpack"
        if name == MANIFEST_NAME:
            name = file_name(Path(str(pack)).parent) or "parts"
        figures = None if found is None else evaluated(found, name, opened.nbytes, results or pack)
        for warning in () if figures is None else figures.warnings:
            terminal.warn(warning)
        digest = _digest(opened, terminal)
        text = model_card(CardSubject(describe_pack(opened), name, digest, figures, base, licence))
    if output is not None:
        with replacing(output, replace=force) as file:
            file.write(text.encode())
    if as_json:
        print_json({"path": output and str(output), "name": name, "sha256": digest, "text": text})
    elif output is None:
        click.echo(text, nl=False)
    else:
        echo(f"{output}: a page about {name}")


def _name(named: dict[str, Any], key: str) -> str | None:
    value = named[key]
    if value is not None and not value.strip():
        option = {"base_model": "--base-model", "licence": "--license"}[key]
        raise click.UsageError(f"{option} is empty: give a name, or leave it out")
    return None if value is None else str(value.strip())


def _digest(pack: Pack, reporter: Reporter) -> str:
    """Return the SHA-256 of a pack's file, or of the manifest of its parts."""
    source = pack.container.source
    if isinstance(source, PartsSource):
        return hashlib.sha256(source.manifest.to_bytes()).hexdigest()
    digest = hashlib.sha256()
    with reporter.phase("reading", pack.nbytes, "B") as done:
        for start in range(0, pack.nbytes, _BLOCK_BYTES):
            block = source.read(start, min(_BLOCK_BYTES, pack.nbytes - start))
            digest.update(block)
            done(len(block))
    return digest.hexdigest()
