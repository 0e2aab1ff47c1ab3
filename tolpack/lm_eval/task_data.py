"""Tasks of lm-eval made from any text: their definitions and questions, in a folder.

lm-eval finds tasks as ``.yaml`` files in the folder of ``--include_path``. Those of
`tolpack/lm_eval/tasks` say what a task asks; `write_tasks` copies them beside their questions, as
JSON lines, which ``datasets`` reads without a network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from tolpack.errors import ConfigError, FileAccessError
from tolpack.lm_eval import TEXT_TASKS
from tolpack.lm_eval.passages import (
    CHOICES,
    MIN_WORDS,
    Endings,
    NextWord,
    endings,
    last_word,
    late_word,
    passages,
)
from tolpack.storage.inputs import InputPath, read_whole

# Standard errors of accuracies are below 1.6 percent then.
MAX_QUESTIONS = 1000
_MAX_TEXT_BYTES = 1 << 30


def write_tasks(text: InputPath, folder: Path, tasks: Iterable[str], seed: int = 0) -> None:
    """Write the tasks made from a text into a folder, for lm-eval's ``include_path``.

    Parameters
    ----------
    text : Path
        UTF-8.
    folder : Path
        It must exist. Each task gets a ``.yaml`` and a ``.jsonl`` with up to `MAX_QUESTIONS` lines.
    tasks : iterable of str
        Those of `TEXT_TASKS` that will be run.
    seed : int
        Another one chooses other questions, and other wrong endings.

    Raises
    ------
    ConfigError
        The text cannot be read, or is too short for one of `tasks`.
    FileAccessError
        A file cannot be written.
    """
    questions = make_questions(_read_text(text), seed)
    for task in tasks:
        _check_enough(task, questions[task], text)
    try:
        for task, asked in questions.items():
            data = folder / f"{task}.jsonl"
            lines = (json.dumps(one, ensure_ascii=False) for one in asked)
            data.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            (folder / f"{task}.yaml").write_text(
                _definition(task, data.resolve()), encoding="utf-8"
            )
    except OSError as error:
        raise FileAccessError(
            f"cannot write tasks to {folder}: {error.strerror or error}"
        ) from error


def make_questions(text: str, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Return the questions of each of `TEXT_TASKS`, at most `MAX_QUESTIONS`, as plain values."""
    ordered = passages(text, seed)
    repeated = [late_word(passage, repeated=True) for passage in ordered]
    new = [late_word(passage, repeated=False) for passage in ordered]
    every: dict[str, Sequence[NextWord | Endings | None]] = {
        "tolpack_last_word": list(map(last_word, ordered)),
        "tolpack_word_repeated": repeated,
        "tolpack_word_new": new,
        "tolpack_endings": endings(ordered),
    }
    found = {task: [one for one in every[task] if one is not None] for task in TEXT_TASKS}
    return {task: list(map(asdict, found[task][:MAX_QUESTIONS])) for task in TEXT_TASKS}


def _check_enough(task: str, questions: Sequence[object], text: InputPath) -> None:
    if len(questions) < CHOICES:
        raise ConfigError(
            f"text {text} gives {len(questions)} questions for task {task}, and {CHOICES} are "
            f"needed: give a longer text of whole sentences (a passage has {MIN_WORDS} words)"
        )


def _definition(task: str, data: Path) -> str:
    """Return the definition of a task with the place of its questions."""
    text = (files("tolpack.lm_eval") / "tasks" / f"{task}.yaml").read_text(encoding="utf-8")
    # The cache of datasets lies in the folder too: else each run would leave one at home.
    places = {"data_files": {"test": str(data)}, "cache_dir": str(data.parent / "cache")}
    return f"{text}dataset_kwargs: {json.dumps(places)}\n"


def _read_text(path: InputPath) -> str:
    try:
        return read_whole(path, _MAX_TEXT_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read text {path}: {reason}") from error
