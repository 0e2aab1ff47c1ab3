"""Tasks of lm-eval on the memories of a study: the model's own, packs, and changed ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tolpack.errors import ConfigError
from tolpack.lm_eval import TEXT_TASKS
from tolpack.model.language_model import LanguageModel
from tolpack.model.text import TextTokenizer, find_tokenizer
from tolpack.sources.identity import file_digest
from tolpack.storage.inputs import InputPath

if TYPE_CHECKING:
    from tolpack.evaluation.evaluator import Evaluator


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """Tasks of a study; those of `TEXT_TASKS` are made from ``text``.

    ``limit`` is a number of documents per task.
    """

    names: tuple[str, ...]
    text: InputPath
    tokenizer: Path | None = None
    limit: int | None = None


class TaskAccuracy:
    """Runs the same tasks with one memory after another.

    Parameters
    ----------
    evaluator : Evaluator
        The model.
    settings : TaskSettings
        The tasks.
    folder : Path
        For the tasks made from the text; it must exist.

    Raises
    ------
    ConfigError
        There is no such task or no tokenizer, the text makes no tasks, or lm-eval is not installed.
    """

    def __init__(self, evaluator: Evaluator, settings: TaskSettings, folder: Path) -> None:
        try:
            import lm_eval

            from tolpack.lm_eval.task_runner import TaskOptions, TaskRunner
        except ModuleNotFoundError as error:
            raise ConfigError(f"tasks need {error.name}: pip install 'tolpack[lm-eval]'") from error
        _write_text_tasks(settings, folder)
        tokenizer = find_tokenizer(evaluator.subject.path, settings.tokenizer)
        if tokenizer is None:
            raise ConfigError("tasks are texts: give their --tokenizer tokenizer.json")
        self._evaluator = evaluator
        self._tokenizer = TextTokenizer(tokenizer)
        self._runner = TaskRunner(TaskOptions(settings.names, (folder,), settings.limit))
        words = (settings.names, settings.limit, lm_eval.__version__)
        digest = hashlib.sha256(repr(words).encode())
        for path in (settings.text, tokenizer):
            digest.update(file_digest(path))
        # Names the tasks and their questions in a cache.
        self.identity = digest.hexdigest()

    def run(self, model: LanguageModel, name: str) -> list[dict[str, Any]]:
        """Return the scores of a model, as plain values for `TaskScore.from_plain`."""
        from tolpack.lm_eval.language_model_lm import LanguageModelLM

        evaluator = self._evaluator
        lm = LanguageModelLM(
            model, self._tokenizer, evaluator.context, f"tasks: {name}", evaluator.reporter
        )
        return [one.to_plain() for one in self._runner.run(lm)]


def _write_text_tasks(settings: TaskSettings, folder: Path) -> None:
    from tolpack.lm_eval.task_data import write_tasks

    if settings.text.suffix != ".npy":
        asked = [name for name in settings.names if name in TEXT_TASKS]
        write_tasks(settings.text, folder, asked)
    elif any(name.startswith("tolpack_") for name in settings.names):
        raise ConfigError(f"{settings.text} has token ids: tasks are made from a text, --text FILE")
