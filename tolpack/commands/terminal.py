"""Output of the command line: results, progress, errors, wrong usage.

File names, tensor names and tokens may hold escape sequences. All text for people is printed here,
where they are escaped; JSON has escapes of its own.
"""

from __future__ import annotations

import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import tqdm

from tolpack.errors import ConfigError, TolpackError, printable
from tolpack.runtime.progress import Reporter

_COMMAND = "tolpack.command"
# What to install, by the module that is missing.
_EXTRAS = {
    **dict.fromkeys(("torch", "safetensors", "scipy", "tokenizers", "h5py"), "build"),
    "transformers": "hf",
    "sklearn": "keys",
}


def echo(text: str) -> None:
    """Print lines of a result on standard output."""
    click.echo("\n".join(map(printable, text.split("\n"))))


def print_piece(text: str) -> None:
    """Print a piece of a model's text on standard output at once, as far as it only shows."""
    click.echo("".join(c if _only_shows(c) else printable(c) for c in text), nl=False)


def _only_shows(character: str) -> bool:
    """Whether it is printable, a space, a joiner within a word, a line end or a tab."""
    return (
        character.isprintable()
        or character in "\n\t\u200c\u200d"
        or unicodedata.category(character) == "Zs"
    )


class Terminal(Reporter):
    """Lines and progress bars on stderr; a bar appears after a second."""

    def say(self, text: str) -> None:
        """See `Reporter`."""
        click.echo(printable(text), err=True)

    def warn(self, text: str) -> None:
        """See `Reporter`."""
        click.secho(f"Warning: {printable(text)}", err=True, fg="yellow")

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """See `Reporter`."""
        interval = 0.1 if sys.stderr.isatty() else 10.0  # a log needs few lines
        with tqdm.tqdm(
            desc=name,
            total=total,
            unit=unit,
            unit_scale=True,
            delay=1.0,
            mininterval=interval,
            leave=False,
        ) as bar:
            yield bar.update


@contextmanager
def when_interrupted(remedy: Callable[[], str]) -> Iterator[None]:
    """Say what Ctrl-C leaves and how to go on, as `remedy` tells it then."""
    try:
        yield
    except KeyboardInterrupt:
        Terminal().say(f"interrupted: {remedy()}")
        raise


class Group(click.Group):
    """Prints tolpack's errors in one line, with exit code 1."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Group`."""
        ctx.meta[_COMMAND] = shlex.join(["tolpack", *args])
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """See `click.Group`."""
        try:
            return super().invoke(ctx)
        except TolpackError as error:
            raise click.ClickException(printable(" ".join(str(error).split()))) from error
        except click.ClickException as error:
            error.message = printable(error.message)  # type: ignore[misc]
            raise
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").split(".")[0])
            if extra is None:
                raise
            raise click.ClickException(
                f"this command needs {error.name}: pip install 'tolpack[{extra}]'"
            ) from error


def command_line() -> str:
    """Return the running command, quoted for a shell."""
    return str(click.get_current_context().meta[_COMMAND])


def checked(parse: Callable[[str], object]) -> Callable[..., str | None]:
    """Return a click callback that reports the `ConfigError` of `parse` as wrong usage."""

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        if value is not None:
            try:
                parse(value)
            except ConfigError as error:
                raise click.BadParameter(str(error)) from error
        return value

    return callback
