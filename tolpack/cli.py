"""The command line: ``tolpack COMMAND …``; a command is a module of `tolpack.commands`."""

from __future__ import annotations

import click

import tolpack
from tolpack.commands.bench import bench
from tolpack.commands.build import build
from tolpack.commands.cache import cache
from tolpack.commands.card import card
from tolpack.commands.convert import convert
from tolpack.commands.demo import demo
from tolpack.commands.diff import diff
from tolpack.commands.edit import edit
from tolpack.commands.evaluate import evaluate
from tolpack.commands.generate import generate
from tolpack.commands.inspect import inspect
from tolpack.commands.join import join
from tolpack.commands.keys import keys
from tolpack.commands.lm_eval import lm_eval
from tolpack.commands.merge import merge
from tolpack.commands.plan import plan
from tolpack.commands.rows import rows
from tolpack.commands.split import split
from tolpack.commands.strip import strip
from tolpack.commands.study import study
from tolpack.commands.terminal import Group
from tolpack.commands.verify import verify


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tolpack.__version__, prog_name="tolpack")
def main() -> None:
    """Store the tables of MemoryLLM models in small files (packs) and look their rows up.

    \b
    tolpack build model.pt                      4 bits: about 3.7 times smaller than FP16
    tolpack build model.pt --bits auto --rank auto --calibrate text.txt    10 times and more
    tolpack eval model.pt model.tolpack --text held-out.txt
    tolpack demo                                builds and evaluates packs of a bundled model
    """


for _command in (
    build, evaluate, generate, lm_eval, study, keys, plan, inspect, verify, rows, diff, bench,
    convert, edit, merge, split, join, strip, card, cache, demo,
):  # fmt: skip
    main.add_command(_command)


if __name__ == "__main__":
    main()
