"""A page about a pack for a model hub: ``tolpack card``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from tolpack.container.provenance import Provenance
from tolpack.evaluation.kept_results import PACK_VALUES, find_pack, numbers, objects
from tolpack.report.card_text import code, fenced, front_matter, plain, table
from tolpack.report.evaluation_tables import format_nats
from tolpack.report.provenance_lines import beside_weights, measured_words, option_words
from tolpack.runtime.sizes import format_bytes
from tolpack.storage.locations import Location

_FOLDERS = re.compile(r"(?:[^\s/\\]*[/\\])+(?=[^\s/\\])")


@dataclass(frozen=True, slots=True)
class CardSubject:
    """What a card is about.

    ``info``: the pack as `tolpack.evaluation.pack_description.describe_pack` has it; ``name`` of
    its file or folder; ``digest``: SHA-256 of the file, or of a folder's manifest; ``evaluation``:
    what ``tolpack eval --json`` found; ``base_model`` and ``license``: for the front matter.
    """

    info: Mapping[str, Any]
    name: str
    digest: str
    evaluation: Evaluated | None = None
    base_model: str | None = None
    license: str | None = None

    @property
    def made_from(self) -> Provenance:
        """What the pack says of its making."""
        return Provenance.of(self.info["provenance"])

    @property
    def tables(self) -> Sequence[Mapping[str, Any]]:
        """Its tables."""
        return self.info.get("tables") or [self.info]


@dataclass(frozen=True, slots=True)
class MeasuredText:
    """What a pack changes on a text of so many tokens; ``name`` is that of the text's file."""

    name: str
    tokens: int
    base_ppl: float
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What ``tolpack eval --json`` found of a pack on each text, in windows of ``context``."""

    context: int
    texts: tuple[MeasuredText, ...]
    warnings: tuple[str, ...] = ()


def model_card(subject: CardSubject) -> str:
    """Write the card: Markdown under the front matter that model hubs read."""
    parts = [
        front_matter(_front(subject)), f"# {plain(subject.name)}", _what(subject),
        "## Size", _size(subject), "## What it costs", *_costs(subject),
        "## How it was made", *_made(subject), "## How to use it", *_use(subject),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _front(subject: CardSubject) -> dict[str, str | Sequence[str]]:
    tags = ["tolpack", *(["memoryllm"] if subject.made_from.memory_ffns else [])]
    found: dict[str, str | Sequence[str]] = {"library_name": "tolpack", "tags": tags}
    if subject.base_model is not None:
        found["base_model"] = subject.base_model
    if subject.license is not None:
        found["license"] = subject.license
    return found


def _what(subject: CardSubject) -> str:
    held = "the rows of a model's lookup tables"
    if subject.made_from.memory_ffns is not None:
        held = (
            "what the memory FFNs of a MemoryLLM give for every token of its vocabulary, so that "
            "a model looks them up in place of computing them"
        )
    of = f" It was made from {plain(subject.base_model)}." if subject.base_model else ""
    return f"This file is a pack of tolpack: it holds {held}.{of}"


def _size(subject: CardSubject) -> str:
    info, lines = subject.info, []
    for one in subject.tables:
        widths = "/".join(map(str, dict.fromkeys(layer["width"] for layer in one["layers"])))
        rows = "tokens" if one["ngrams"] is None else "rows"
        dropped = ", ".join(map(str, one["dropped_layers"]))
        line = f"* table {code(one['name'])}: {one['vocab_size']:,} {rows} × "
        line += f"{one['num_layers']} layers × {widths}"
        lines.append(line + (f"; layers {dropped} are dropped" if dropped else ""))
    lines.append(
        f"* {format_bytes(info['bytes'])} ({info['bytes']:,} bytes), × {info['ratio_fp16']:.2f} "
        f"smaller than FP16, {info['bits_per_weight']:.2f} bits per value"
    )
    beside = beside_weights(info["bytes"], subject.made_from)
    lines += [] if beside is None else [f"* {beside}"]
    ranks = sorted({layer["rank"] for one in subject.tables for layer in one["layers"]
                    if layer["rank"] is not None})  # fmt: skip
    if ranks:
        lines.append(f"* rows are coefficients of bases of rank {ranks[0]} … {ranks[-1]}")
    lines.append(f"* format {info['format_version']}, written by {plain(info['producer'])}")
    return "\n".join(lines)


def _costs(subject: CardSubject) -> list[str]:
    found, measured = [], subject.made_from.measured
    if measured:
        found.append(f"Its build measured {measured_words(measured)}.")
    if subject.evaluation is not None:
        found += _evaluated(subject.evaluation)
    return found or ["Nothing was measured: run `tolpack eval`."]


def _evaluated(evaluation: Evaluated) -> list[str]:
    header = ["text", "tokens", "perplexity of the checkpoint", "of the pack", "increase",
              "KL divergence, nats", "same most likely token"]  # fmt: skip
    rows = [_text_row(number, one) for number, one in enumerate(evaluation.texts, 1)]
    note = (
        f"Measured by `tolpack eval` in windows of {evaluation.context:,} tokens. KL divergence is "
        "that of the pack's predictions from the checkpoint's, in the mean; ± is a standard error."
    )
    warned = [f"> Warning: {plain(_FOLDERS.sub('', one))}" for one in evaluation.warnings]
    return [table(header, rows), note, *warned]


def _text_row(number: int, text: MeasuredText) -> list[str]:
    value = text.values
    return [
        code(text.name) if text.name else str(number),
        f"{text.tokens:,}",
        f"{text.base_ppl:,.3f}",
        f"{value['ppl']:,.3f}",
        _with_error(value, "ppl_increase", "_pct", "+.3f") + " %",
        format_nats(value["kl_mean_nats"] or 0.0, value["kl_mean_se_nats"]),
        _with_error(value, "top1_agreement", "_pct", ".2f") + " %",
    ]


def _with_error(values: Mapping[str, float | None], name: str, unit: str, form: str) -> str:
    """Write a value and its standard error, if it has one."""
    value, error = values[name + unit], values[f"{name}_se{unit}"]
    shown = format(value, form)
    return shown if error is None else f"{shown} ± {format(error, form.removeprefix('+'))}"


def _made(subject: CardSubject) -> list[str]:
    made_from, lines = subject.made_from, []
    if not (made_from.checkpoint or made_from.options):
        return ["The pack does not say how it was made."]
    words = ["tolpack build CHECKPOINT"]
    if made_from.options:
        words.append(option_words(made_from.options))
    words += ["--calibrate TEXT"] * (
        made_from.calibration is not None and made_from.calibration.sha256 is not None
    )
    words += ["--frequencies COUNTS"] * (made_from.frequencies is not None)
    for name, digest in made_from.checkpoint.items():
        lines.append(f"* checkpoint of table {code(name)}: SHA-256 `{digest}`")
    text = made_from.calibration
    if text is not None:
        of = "sampled from the model" if text.sha256 is None else f"SHA-256 `{text.sha256}`"
        lines.append(f"* calibration text: {text.tokens:,} tokens, {of}")
    if made_from.tokenizer is not None:
        lines.append(f"* tokenizer: SHA-256 `{made_from.tokenizer}`")
    if made_from.frequencies is not None:
        lines.append(f"* token counts: SHA-256 `{made_from.frequencies}`")
    if made_from.edited:
        lines.append("* rows were edited since")
    return [fenced("sh", [" ".join(words)]), "\n".join(lines)]


def _use(subject: CardSubject) -> list[str]:
    name, first = subject.name, subject.tables[0]
    more = "" if len(subject.tables) == 1 else f", table={first['name']!r}"
    shape = f"float32 (3, {first['num_layers']}, {first['hidden_size'] or 'width'})"
    python = [
        "import tolpack",
        "",
        f"with tolpack.open({name!r}{more}) as pack:",
        f"    rows = pack.rows([5, 17, 5])  # {shape}",
    ]
    checked = f"{name}/manifest.json" if "part_files" in subject.info else name
    shell = [
        f"echo {shlex.quote(f'{subject.digest}  {checked}')} | sha256sum --check",
        f"tolpack verify {shlex.quote(name)}",
    ]
    return [
        fenced("sh", ["pip install tolpack"]), fenced("python", python),
        "To check the download:", fenced("sh", shell),
    ]  # fmt: skip


def evaluated(results: Mapping[str, Any], name: str, nbytes: int, path: Location) -> Evaluated:
    """Return what ``tolpack eval --json`` printed to `path` of the pack `name`.

    Raises
    ------
    ConfigError
        It has no figures of it, or they are not numbers.
    """
    context = numbers(dict(results), ["context"], path)["context"]
    texts = objects(results.get("texts")) or [dict(results)]
    found = []
    for one in texts:
        pack = find_pack(one, name, nbytes, path)
        base = numbers(one["baseline"], ["ppl", "tokens"], path)
        text = one.get("text")
        named = file_name(text) if isinstance(text, str) else ""
        values = numbers(pack, PACK_VALUES, path)
        found.append(MeasuredText(named, int(base["tokens"] or 0), base["ppl"] or 0.0, values))
    warnings = results.get("warnings")
    listed = warnings if isinstance(warnings, list) else []
    return Evaluated(int(context or 0), tuple(found), tuple(map(str, listed)))


def file_name(path: object) -> str:
    """Return the last part of a path or URL."""
    return PurePath(str(path).replace("\\", "/")).name
