"""Write ``docs/commands/``: a page for each command of ``tolpack``, from its own help.

python docs/make_command_pages.py

The pages follow from click's objects, not from what ``--help`` prints, so that the width of the
terminal does not matter. Only the links to further reading are kept here.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click

from tolpack.cli import main as group

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "commands"
# Documents that explain a command, besides the tutorial.
FURTHER = {
    "build": ["compression.md", "checkpoints.md", "families.md", "scale.md"],
    "eval": ["choosing-settings.md", "checkpoints.md"],
    "generate": ["checkpoints.md", "transformers.md"],
    "plan": ["compression.md", "families.md", "scale.md"],
    "inspect": ["checkpoints.md", "families.md", "compression.md", "provenance.md"],
    "verify": ["integrity.md", "../formats/v1/SPEC.md"],
    "rows": ["insight.md", "serving.md", "families.md", "integrity.md"],
    "diff": ["insight.md"],
    "study": ["choosing-settings.md", "compression.md"],
    "bench": ["serving.md"],
    "split": ["scale.md"],
    "join": ["scale.md"],
    "convert": ["convert.md"],
    "edit": ["editing.md", "../formats/v1/SPEC.md"],
    "merge": ["editing.md", "../formats/v1/SPEC.md"],
    "keys": ["keys.md"],
    "card": ["provenance.md"],
    "cache": ["choosing-settings.md", "serving.md"],
    "demo": ["../tolpack/demo/model/README.md"],
}
NOTE = "<!-- Made by `python docs/make_command_pages.py`: change the help, not this page. -->"
Cells = tuple[str, ...]
FAILED = "an error, in one line on standard error"


def main() -> None:
    """Write the pages, and remove those of commands that are gone."""
    found = pages()
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.md"):
        if path.name not in found:
            path.unlink()
    for name, text in found.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Return the text of every page by its file's name."""
    found = {f"{name}.md": page(name, command) for name, command in group.commands.items()}
    return {"README.md": index(), **found}


def index() -> str:
    """Return the page that lists the commands."""
    rows: list[Cells] = [
        (f"[`tolpack {name}`]({name}.md)", prose(one)[0]) for name, one in group.commands.items()
    ]
    parts = [
        NOTE,
        "# Commands",
        table(("command", "what it does"), rows),
        "Every command has `--help` (`-h`), with what its page says, and `--json`, which prints "
        "one JSON object in place of tables. Results go to standard output, progress and errors "
        "to standard error. `tolpack --version` prints the version.",
        "All of them in their order, on a bundled model: [the tutorial](../tutorial.md).",
    ]
    return "\n\n".join(parts) + "\n"


def page(name: str, command: click.Command) -> str:
    """Return the page of one command."""
    parent = click.Context(group, info_name="tolpack", **group.context_settings)
    context = click.Context(command, parent, name)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    summary, *description = prose(command)
    names = argument_names(command)
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    rows = [option_row(one, names) for one in options]
    parts = [
        NOTE,
        f"# tolpack {name}",
        summary,
        fenced(usage),
        *description,
        "## Examples",
        fenced("\n".join(examples(command))),
        "## Options",
        table(("option", "values", "default", "what it does"), rows),
        "## Exit codes",
        table(("code", "when"), exit_codes(command)),
        "## See also",
        "\n".join(f"* {link(one)}" for one in ["tutorial.md", *FURTHER.get(name, [])]),
        "[All commands](README.md)",
    ]
    return "\n\n".join(parts) + "\n"


def paragraphs(command: click.Command) -> list[str]:
    """Return the paragraphs of a command's help; those that begin with a backspace are shown as
    they stand: the examples.
    """
    return inspect.cleandoc(command.help or "").split("\n\n")


def prose(command: click.Command) -> list[str]:
    """Return the paragraphs that are text, each in one line of Markdown."""
    names = argument_names(command)
    return [marked(p, names) for p in paragraphs(command) if not p.startswith("\b")]


def examples(command: click.Command) -> list[str]:
    """Return the lines of a command's examples."""
    shown = [p for p in paragraphs(command) if p.startswith("\b")]
    return [line.strip() for p in shown for line in p.splitlines()[1:]]


def argument_names(command: click.Command) -> list[str]:
    """Return the names of a command's arguments as its help writes them."""
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    shown = [one.metavar or (one.name or "").upper() for one in arguments]
    return [name for text in shown for name in re.findall(r"\w+", text)]


def marked(text: str, names: list[str]) -> str:
    """Return text as Markdown in one line, with options and the arguments `names` as code."""
    line = re.sub(r"([\\`*<])", r"\\\1", " ".join(text.split()))
    code = "|".join(["--[a-z][a-z-]*", *names])
    return re.sub(rf"(?<![\w-])({code})(?=s?\b)", r"`\1`", line)


def option_row(option: click.Option, names: list[str]) -> Cells:
    """Return flags, values, default and description of an option."""
    text, default = option.help or "", ""
    if option.show_default:
        default = f"`{option.default}`"
    elif option.required:
        default = "(required)"
    elif found := re.search(r" *\[default: (.+?)\]", text):
        default, text = marked(found[1], names), text.replace(found[0], "")
    flags = ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
    return flags, values_of(option), default, marked(text, names)


def values_of(option: click.Option) -> str:
    """Return what may stand behind an option; nothing behind a flag."""
    kind = option.type
    if option.is_flag:
        return ""
    if isinstance(kind, click.Choice):
        return ", ".join(f"`{choice}`" for choice in kind.choices)
    text = option.metavar or kind.name.removesuffix(" range")
    if isinstance(kind, click.IntRange | click.FloatRange):
        text += "" if kind.min is None else f" from {kind.min}"
        text += "" if kind.max is None else f" to {kind.max}"
    return text


def exit_codes(command: click.Command) -> list[Cells]:
    """Return exit codes and when they are given; of 1 also what the help says of it."""
    found = re.search(r"exit 1 if ([^.;]+)", " ".join((command.help or "").split()))
    failed = f"{found[1]}; also {FAILED}" if found else FAILED
    return [("0", "done"), ("1", failed), ("2", "wrong usage, explained on standard error")]


def table(head: Cells, rows: list[Cells]) -> str:
    """Return a table in Markdown, without the columns that are empty in every row."""
    kept = [n for n in range(len(head)) if any(row[n] for row in rows)]
    lines = [[row[n].replace("|", "\\|") for n in kept] for row in [head, *rows]]
    lines.insert(1, ["---"] * len(kept))
    return "\n".join(f"| {' | '.join(cells)} |".replace("  |", " |") for cells in lines)


def fenced(text: str) -> str:
    """Return a block of code."""
    return f"```\n{text}\n```"


def link(path: str) -> str:
    """Return a link from a page to a document, by its first heading."""
    lines = (DOCS / path).read_text(encoding="utf-8").splitlines()
    title = next(line for line in lines if line.startswith("# ")).removeprefix("# ")
    return f"[{title}](../{path})"


if __name__ == "__main__":
    main()
