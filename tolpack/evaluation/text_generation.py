"""Text that a checkpoint continues, with its own memory or with that of a pack."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import CheckpointError, ConfigError
from tolpack.evaluation.generation_settings import GenerationSettings
from tolpack.evaluation.pack_description import every_table
from tolpack.evaluation.provenance_check import OriginCheck, pack_name
from tolpack.evaluation.subject import Subject, open_subject, read_bytes_per_token
from tolpack.model.generation import generate
from tolpack.model.language_model import LanguageModel
from tolpack.model.text import TextTokenizer, find_tokenizer
from tolpack.model.text_stream import TextStream
from tolpack.model.tokenizer_check import TokenizerCheck
from tolpack.pack import open_first_table
from tolpack.reading.edits_files import share_edits
from tolpack.runtime.progress import KeptWarnings, Reporter
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.json_file import read_json
from tolpack.storage.inputs import InputPath, input_path
from tolpack.storage.locations import Location

# How tokenizers call the token that ends a text, where no configuration gives its id.
_END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "</s>", "<eos>", "<|im_end|>")
_MAX_CONFIG_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """A prompt and its continuation.

    ``stopped`` says why no more tokens follow: ``tokens`` (as many as were asked for),
    ``end_of_text`` (the model ended the text, by a token that is not in ``token_ids``) or
    ``positions`` (the model was trained on no more). ``prompt_seconds`` is the time up to the first
    token, ``seconds`` that of all. ``read_bytes_per_token`` is what lookups in the pack read.
    ``warnings``: what makes the text doubtful.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    prompt_seconds: float
    seconds: float
    stopped: str
    temperature: float
    seed: int
    positions: int | None = None
    pack: str | None = None
    read_bytes_per_token: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens a second, after the first; ``None`` if there is no other."""
        steps, seconds = len(self.token_ids) - 1, self.seconds - self.prompt_seconds
        return steps / seconds if steps > 0 and seconds > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        more = {"tokens": len(self.token_ids), "tokens_per_second": self.tokens_per_second}
        lists = {"token_ids": list(self.token_ids), "warnings": list(self.warnings)}
        return {**asdict(self), **lists, **more}


def generate_text(
    checkpoint: Location,
    prompt: str,
    pack: Location | None = None,
    *,
    edits: Sequence[Location] = (),
    tokenizer: Location | None = None,
    checkpoint_options: CheckpointOptions | None = None,
    settings: GenerationSettings | None = None,
    show: Callable[[str], object] = lambda _: None,
    reporter: Reporter | None = None,
) -> GeneratedText:
    """Continue a prompt with a checkpoint, and with a pack in place of its memory.

    Parameters
    ----------
    checkpoint : str or Path
        As of `tolpack.evaluation.subject.open_subject`.
    prompt : str
        Text that the continuation follows; encoded without special tokens, but with the token that
        a model's texts begin with.
    pack : str or Path, optional
        A pack made from the checkpoint.
    edits : sequence of str or Path
        Edits of the pack.
    tokenizer : str or Path, optional
        A ``tokenizer.json``; default: the one beside the checkpoint.
    checkpoint_options : CheckpointOptions, optional
        Settings for a checkpoint that does not describe itself.
    settings : GenerationSettings, optional
        Number of tokens, temperature and seed.
    show : callable
        Receives the pieces of the continuation as they come, each of whole characters.
    reporter : Reporter, optional
        Is told which tokenizer is used, and what makes the text doubtful.

    Raises
    ------
    CheckpointError, ConfigError, FormatError, FileAccessError
        An input cannot be used, the pack does not fit the checkpoint, or the prompt has no tokens
        or more than the model has positions.
    """
    options, settings = checkpoint_options or CheckpointOptions(), settings or GenerationSettings()
    own_edits = share_edits([] if pack is None else [pack], edits)
    subject = open_subject(checkpoint, options)
    encoder = _open_tokenizer(subject, tokenizer)
    kept = KeptWarnings(reporter)
    check = TokenizerCheck(subject.path, subject.model.vocab_size, kept)
    check(encoder, prompt.encode(errors="replace"))  # what is no UTF-8 is refused below
    ids = _encode(prompt, encoder, subject.model)
    ends = end_tokens(subject.path, encoder, options.config)
    with ExitStack() as stack:
        model = subject.model
        opened = None
        if pack is not None:
            opened = stack.enter_context(open_first_table(pack, own_edits[0]))
            model = subject.with_pack(opened, str(pack))
            OriginCheck(subject, encoder.path, kept)(opened, pack_name(str(pack)))
        run = _Run(model, ids, settings, ends)
        text = "".join(_shown(run, TextStream(encoder, ids.tolist()), show))
        read = None
        if opened is not None:
            tables = stack.enter_context(every_table(opened))
            read = read_bytes_per_token(tables, np.array([*ids, *run.token_ids[:-1]], np.int64))
    return GeneratedText(
        prompt, text, tuple(run.token_ids), len(ids), run.prompt_seconds, run.seconds, run.stopped,
        settings.temperature, settings.seed, model.max_position_embeddings,
        None if pack is None else str(pack), read, tuple(kept.warnings),
    )  # fmt: skip


class _Run:
    """Tokens of a continuation, with the time that the model takes for them."""

    def __init__(
        self,
        model: LanguageModel,
        prompt: NDArray[np.int64],
        settings: GenerationSettings,
        ends: frozenset[int],
    ) -> None:
        self._ends = ends
        self.token_ids: list[int] = []
        self.prompt_seconds = self.seconds = 0.0
        longest = model.max_position_embeddings
        # The last token is not fed to the model: it needs no position.
        room = settings.tokens if longest is None else longest - len(prompt) + 1
        self.stopped = "tokens" if settings.tokens <= room else "positions"
        self._source = generate(
            model, prompt.tolist(), min(settings.tokens, room),
            temperature=settings.temperature, seed=settings.seed,
        )  # fmt: skip

    def __iter__(self) -> Iterator[int]:
        while True:
            begin = time.perf_counter()
            token = next(self._source, None)
            if token is None:
                return
            self.seconds += time.perf_counter() - begin
            self.prompt_seconds = self.prompt_seconds or self.seconds
            if token in self._ends:
                self.stopped = "end_of_text"
                return
            self.token_ids.append(token)
            yield token


def _shown(run: _Run, stream: TextStream, show: Callable[[str], object]) -> Iterator[str]:
    """Yield the pieces of text, each shown as it comes."""
    pieces = (stream.add(token) for token in run)
    for piece in pieces:
        show(piece)
        yield piece
    rest = stream.end()
    show(rest)
    yield rest


def _open_tokenizer(subject: Subject, given: Location | None) -> TextTokenizer:
    found = find_tokenizer(subject.path, given)
    if found is None:
        raise ConfigError(
            f"{subject.path} has no tokenizer.json inside or beside it: give the one that the "
            "model was trained with, by --tokenizer tokenizer.json"
        )
    return TextTokenizer(found)


def _encode(prompt: str, encoder: TextTokenizer, model: LanguageModel) -> NDArray[np.int64]:
    ids = encoder.encode(prompt)
    if not ids.size:
        raise ConfigError("the prompt has no tokens: give some text")
    highest, longest = int(ids.max()), model.max_position_embeddings
    if highest >= model.vocab_size:
        raise CheckpointError(
            f"tokenizer {encoder.path} gives token id {highest} ({encoder.text(highest)!r}), but "
            f"the model's vocabulary has {model.vocab_size}: use the tokenizer that it was trained "
            "with"
        )
    if longest is not None and ids.size > longest:
        raise ConfigError(
            f"the prompt has {ids.size} tokens, but the model has {longest} positions "
            "(max_position_embeddings): give a shorter prompt"
        )
    return ids


def end_tokens(
    checkpoint: InputPath, encoder: TextTokenizer, config: Location | None = None
) -> frozenset[int]:
    """Return the ids that end a text: those of the model's configuration, or by the usual names.

    Parameters
    ----------
    checkpoint : Path or RemotePath
        In its folder stand ``generation_config.json`` and ``config.json``.
    encoder : TextTokenizer
        Its special tokens count if neither has ``eos_token_id``.
    config : str or Path, optional
        Read in place of these two.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    names = ("generation_config.json", "config.json")
    for path in [folder / name for name in names] if config is None else [input_path(config)]:
        found = _configured_ends(path)
        if found:
            return found
    special = encoder.special_tokens()
    return frozenset(special[name] for name in _END_NAMES if name in special)


def _configured_ends(path: InputPath) -> frozenset[int]:
    """Return the ``eos_token_id`` of a configuration: a number, a list of them, or nothing."""
    try:
        value = read_json(path, _MAX_CONFIG_BYTES)
    except (OSError, ValueError):
        return frozenset()
    for part in (value, value.get("text_config")) if isinstance(value, dict) else ():
        found = part.get("eos_token_id") if isinstance(part, dict) else None
        listed = found if isinstance(found, list) else [found]
        ends = [one for one in listed if isinstance(one, int) and not isinstance(one, bool)]
        if ends:
            return frozenset(ends)
    return frozenset()
