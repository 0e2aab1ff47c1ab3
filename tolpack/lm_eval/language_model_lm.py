"""Any `LanguageModel` on lm-eval's tasks of log-likelihoods, such as the reference decoder.

A study changes a model's memory in ways that no file holds. `TolpackLM` runs models that are files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from lm_eval.api.model import TemplateLM

from tolpack.errors import ConfigError
from tolpack.model.language_model import LanguageModel
from tolpack.model.perplexity import tokens_per_batch
from tolpack.model.text import TextTokenizer
from tolpack.runtime.progress import Reporter

# What was asked, ids of the context, ids of the continuation.
_Request = tuple[tuple[str, str], list[int], list[int]]


class LanguageModelLM(TemplateLM):  # type: ignore[misc]
    """Log-likelihoods of a `LanguageModel`; tokens are those of `TextTokenizer`.

    Parameters
    ----------
    model : LanguageModel
        The model.
    tokenizer : TextTokenizer
        Its tokenizer; no special tokens are added.
    context : int
        Longest window in tokens; what comes before is left out.
    name : str
        Names the model in its progress.
    reporter : Reporter
        Receives progress.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: TextTokenizer,
        context: int,
        name: str,
        reporter: Reporter,
    ) -> None:
        super().__init__()
        self._model, self._encoder, self._context = model, tokenizer, context
        self._name, self._reporter = name, reporter

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """Return the token ids of a text."""
        return list(map(int, self._encoder.encode(string)))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """See `LM`; progress goes to the reporter alone."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], **options: Any
    ) -> list[tuple[float, bool]]:
        windows = [self._window(context, asked) for _, context, asked in requests]
        most = tokens_per_batch(self._model.vocab_size)
        order = sorted(range(len(windows)), key=lambda n: -len(windows[n][0]))
        answers: dict[int, tuple[float, bool]] = {}
        with self._reporter.phase(self._name, len(windows), "requests") as done:
            while order:
                size = max(1, most // len(windows[order[0]][0]))
                batch, order = order[:size], order[size:]
                for logits, n in zip(self._logits([windows[n][0] for n in batch]), batch):
                    answers[n] = _answer(logits, *windows[n])
                done(len(batch))
        return [answers[n] for n in range(len(windows))]

    def _logits(self, read: list[list[int]]) -> torch.Tensor:
        """Return the logits of several windows, padded behind their ends."""
        ids = torch.zeros(len(read), max(map(len, read)), dtype=torch.int64)
        for row, window in zip(ids, read):
            row[: len(window)] = torch.tensor(window)
        return self._model(ids)

    def _window(self, context: list[int], asked: list[int]) -> tuple[list[int], list[int]]:
        """Return the ids that are read, and those that the last of them are scored on."""
        if not 0 < len(asked) <= self._context:
            raise ConfigError(
                f"a task asks for {len(asked)} tokens, expected 1 … {self._context}, the window's "
                "length: choose another task"
            )
        return (context + asked)[-self._context - 1 : -1], asked

    @property
    def eot_token_id(self) -> NoReturn:
        """Token before a text without a context: there is none.

        Raises
        ------
        ConfigError
            Always.
        """
        raise ConfigError("a task asks for a text without a context: run it by tolpack lm-eval")

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> NoReturn:
        """Refuse.

        Raises
        ------
        ConfigError
            Always.
        """
        raise ConfigError("a task asks for whole texts: run it by tolpack lm-eval")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> NoReturn:
        """Refuse.

        Raises
        ------
        ConfigError
            Always.
        """
        raise ConfigError("a task generates text: run it by tolpack lm-eval")


def _answer(logits: torch.Tensor, read: list[int], asked: list[int]) -> tuple[float, bool]:
    """Return the log-likelihood of the ids asked for, and whether greedy decoding gives them."""
    scored = logits[len(read) - len(asked) : len(read)].log_softmax(-1)
    ids = torch.tensor(asked)
    total = scored.gather(1, ids[:, None]).double().sum()
    return float(total), bool((scored.argmax(-1) == ids).all())
