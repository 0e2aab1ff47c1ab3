"""The command line: ``tolpack COMMAND …``; a command is a module of `tolpack.commands`."""

from __future__ import annotations

import click

import tolpack
from tolpack.commands.bench import bench
from tolpack.commands.build import build
from tolpack.commands.convert import convert
from tolpack.commands.demo import demo
from tolpack.commands.diff import diff
from tolpack.commands.evaluate import evaluate
from tolpack.commands.inspect import inspect
from tolpack.commands.plan import plan
from tolpack.commands.rows import rows
from tolpack.commands.study import study
from tolpack.commands.terminal import Group
from tolpack.commands.verify import verify


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tolpack.__version__, prog_name="tolpack")
def main() -> None:
    """Make the feed-forward memory of MemoryLLM models small, and read its rows back fast.

    \b
    tolpack build model.pt                      a pack at 4 bits, ÷3.7
    tolpack build model.pt --bits auto --rank auto --calibrate text.txt      ÷10 and more
    tolpack eval model.pt model.tolpack --text held-out.txt
    tolpack demo                                all of it on a bundled model
    """


for _command in (
    build, evaluate, study, plan, inspect, verify, rows, diff, bench, convert, demo,
):  # fmt: skip
    main.add_command(_command)


if __name__ == "__main__":
    main()
