"""``tolpack lm-eval``: packs on the tasks of the language model evaluation harness."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tolpack.commands.options import (
    LOCATION,
    PATH,
    checkpoint_options,
    edits_option,
    json_option,
    print_json,
    take_checkpoint_options,
    task_names,
)
from tolpack.commands.terminal import Terminal, echo
from tolpack.errors import ConfigError, FileAccessError
from tolpack.lm_eval import TEXT_TASKS
from tolpack.model.text import TextTokenizer, find_tokenizer
from tolpack.model.tokenizer_check import TokenizerCheck
from tolpack.report.task_tables import task_table
from tolpack.storage.inputs import input_path, local_input
from tolpack.storage.locations import Location

if TYPE_CHECKING:  # it takes seconds to import
    from tolpack.lm_eval.model import TolpackLM
    from tolpack.lm_eval.task_runner import TaskOptions
    from tolpack.lm_eval.task_scores import ModelScores


@click.command(name="lm-eval")
@click.argument("checkpoint", type=LOCATION)
@click.argument("packs", nargs=-1, type=LOCATION)
@click.option(
    "--tasks", required=True, help="Names of tasks, with commas; * stands for any letters."
)
@click.option(
    "--text", type=LOCATION, help=f"UTF-8 text to make tasks of: {', '.join(TEXT_TASKS)}.",
)  # fmt: skip
@click.option(
    "--seed", type=int, default=0, show_default=True,
    help="With --text: another one chooses other questions.",
)  # fmt: skip
@click.option(
    "--task-folder", type=PATH,
    help="With --text: keep the tasks in this new folder, for lm-eval's --include_path.",
)  # fmt: skip
@click.option(
    "--include-path", type=PATH, multiple=True, help="Folder of your own tasks; repeatable."
)
@click.option("--limit", type=click.IntRange(2), help="Use only the first N documents of a task.")
@click.option("--num-fewshot", type=click.IntRange(0), help="Examples in the context.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=8, show_default=True,
    help="Sequences in a batch.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(("auto", "float32", "bfloat16", "float16")), default="auto",
    show_default=True, help="Dtype of the model; auto: the one that weights are stored in.",
)  # fmt: skip
@click.option("--device", help="Where the model runs, like cuda [default: the CPU].")
@click.option(
    "--tokenizer", type=LOCATION,
    help="tokenizer.json, or a folder of transformers [default: the checkpoint's].",
)  # fmt: skip
@edits_option
@checkpoint_options
@json_option
def lm_eval(
    checkpoint: Location, packs: tuple[Location, ...], as_json: bool, **settings: Any
) -> None:
    """Run tasks of lm-eval on CHECKPOINT and on its PACKS.

    lm-eval mounts each pack in place of the checkpoint's table. The checkpoint is a folder of
    Gemma 3n, Gemma 4 or Qwen4Exp, or any MemoryLLM or Flex-MemoryLLM. Differences of packs from
    the checkpoint are paired document by document. Each of --edits goes to those of PACKS that it
    belongs to.

    With --text, lm-eval makes tasks of a text. They need no network.

    \b
    tolpack lm-eval model/ model.tolpack --tasks lambada_openai,hellaswag --limit 500
    tolpack lm-eval model.pt a.tolpack b.tolpack --tasks 'tolpack_*' --text held-out.txt
    """
    folder = local_input(checkpoint, "a model of lm-eval")
    with _task_options(settings) as options:
        models = _run(folder, packs, options, settings)
    if as_json:
        print_json({"models": [one.to_json() for one in models]})
    else:
        echo(task_table(models))


def _run(
    folder: Path,
    packs: tuple[Location, ...],
    options: TaskOptions,
    settings: dict[str, Any],
) -> list[ModelScores]:
    """Run the tasks on the checkpoint, then on each pack; one model is in memory at a time."""
    import torch

    from tolpack.lm_eval.model import TolpackLM
    from tolpack.lm_eval.task_runner import TaskRunner
    from tolpack.lm_eval.task_scores import ModelScores
    from tolpack.pack import open_first_table
    from tolpack.reading.edits_files import share_edits

    if str(settings["device"]).startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {settings['device']}: this torch finds no CUDA; leave it out")
    loading = {name: settings[name] for name in ("tokenizer", "dtype", "device", "batch_size")}
    loading["checkpoint_options"] = take_checkpoint_options(settings)
    edits = share_edits(packs, settings["edits"])
    for one in zip(packs, edits):  # before hours of tasks
        open_first_table(*one).close()
    runner = TaskRunner(options)
    model = TolpackLM(folder, **loading)
    _check_tokenizer(folder, settings["tokenizer"], model)
    models = [ModelScores(_name(folder), runner.run(model))]
    for pack, own in zip(packs, edits):
        del model  # one is in memory at a time
        try:
            model = TolpackLM(folder, pack, edits=own, **loading)
        except ConfigError as error:
            raise ConfigError(f"{pack}: {error}") from error
        scores = runner.run(model)
        name = " + ".join(map(str, (pack, *own)))
        models.append(ModelScores.compared(name, scores, models[0]))
    return models


def _check_tokenizer(checkpoint: Path, given: Location | None, model: TolpackLM) -> None:
    """Say which tokenizer it is, and hold it against the model and the checkpoint's own."""
    vocab_size = model.model.config.get_text_config().vocab_size
    check = TokenizerCheck(checkpoint, vocab_size, Terminal())
    place = checkpoint if given is None else local_input(given, "a tokenizer of lm-eval")
    path = place / "tokenizer.json" if place.is_dir() else find_tokenizer(checkpoint, given)
    if path is not None and path.exists():
        check(TextTokenizer(path))
    else:
        check.check_size(str(place), len(model.tokenizer))


def _name(checkpoint: Path) -> str:
    """Return what the first model is called: a folder that was stripped has a pack already."""
    from tolpack.sources.checkpoint.options import CheckpointOptions
    from tolpack.sources.open_source import open_files

    if not checkpoint.is_dir():
        return "checkpoint"
    pack = open_files(checkpoint, CheckpointOptions()).pack_name
    return "checkpoint" if pack is None else f"checkpoint, with its pack {pack}"


@contextmanager
def _task_options(settings: dict[str, Any]) -> Iterator[TaskOptions]:
    """Yield the tasks to run; those made from a text are in a folder as long."""
    try:
        from tolpack.lm_eval.task_runner import TaskOptions
    except ModuleNotFoundError as error:
        raise ConfigError(f"lm-eval needs {error.name}: pip install 'tolpack[lm-eval]'") from error

    names = task_names(settings["tasks"])
    with _text_tasks(names, settings) as folders:
        paths = (*settings["include_path"], *folders)
        yield TaskOptions(names, paths, settings["limit"], settings["num_fewshot"])


@contextmanager
def _text_tasks(names: tuple[str, ...], settings: dict[str, Any]) -> Iterator[tuple[Path, ...]]:
    """Yield the folder of the tasks made from the text, if there is one."""
    from tolpack.lm_eval.task_data import write_tasks

    text, folder = settings["text"], settings["task_folder"]
    text = None if text is None else input_path(text)
    if text is None:
        if folder is not None:
            raise click.UsageError("--task-folder is for the tasks of --text")
        if set(names) & set(TEXT_TASKS):
            raise click.UsageError(f"{names[0]} is made from a text: name one with --text")
        yield ()
        return
    asked = [name for name in names if name in TEXT_TASKS]
    if folder is not None:
        try:
            folder.mkdir()
        except OSError as error:
            raise FileAccessError(f"cannot make {folder}: {error.strerror or error}") from error
        write_tasks(text, folder, asked, settings["seed"])
        yield (folder,)
        return
    with tempfile.TemporaryDirectory(prefix="tolpack-") as temporary:
        write_tasks(text, Path(temporary), asked, settings["seed"])
        yield (Path(temporary),)
