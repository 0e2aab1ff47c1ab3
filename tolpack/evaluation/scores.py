"""Scores of a checkpoint and of its packs, as ``tolpack eval`` reports them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Baseline:
    """Score of the checkpoint itself.

    ``nll_nats`` is per token; ``ffn_bytes`` are those of the memory FFNs as stored, ``None`` for a
    dense model, and ``ffn_bytes_16`` in 16 bits; ``table_bytes`` those of a table that the
    checkpoint stores. With several texts: ``by_text`` on each of them, whose name is ``text``.
    """

    ppl: float
    ppl_se: float | None
    nll_nats: float
    tokens: int
    ffn_bytes: int | None
    text: str = ""
    by_text: tuple[Baseline, ...] = ()
    ffn_bytes_16: int | None = None
    table_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return _plain(self)


@dataclass(frozen=True, slots=True)
class PackScore:
    """Score of one pack; the fields are those of ``tolpack eval --json``.

    ``read_bytes_per_token`` is the mean over the evaluated tokens of the bytes that a lookup of one
    token reads from the file; ``ppl_increase_se_pct`` is paired window by window. ``kl_…`` are over
    the scored tokens, ``top1_agreement_pct`` is the share of them where the checkpoint and the pack
    hold the same token most likely (`tolpack.model.divergence`); ``edits`` are the files of edits
    that the pack was opened with. With several texts these are over
    the windows of all: ``by_text`` on each of them, whose name is ``text``. ``kind`` says in words
    how the pack stores values (`tolpack.reading.summary.settings_kind`); it is not in JSON.
    """

    path: str
    ppl: float
    ppl_se: float | None
    nll_nats: float
    tokens: int
    ffn_bytes: int | None
    bytes: int
    ratio_fp16: float
    bits_per_weight: float
    ppl_increase_pct: float
    ppl_increase_se_pct: float | None
    kl_mean_nats: float
    kl_mean_se_nats: float | None
    kl_median_nats: float
    kl_p99_nats: float
    kl_max_nats: float
    top1_agreement_pct: float
    top1_agreement_se_pct: float | None
    read_bytes_per_token: float
    resident_bytes: int
    macs_per_token: int
    text: str = ""
    by_text: tuple[PackScore, ...] = ()
    edits: tuple[str, ...] = ()
    ffn_bytes_16: int | None = None
    table_bytes: int | None = None
    kind: str = ""

    @property
    def name(self) -> str:
        """The name of the pack's file, and those of its edits."""
        return " + ".join(Path(path).name for path in (self.path, *self.edits))

    @property
    def worst_kl(self) -> PackScore:
        """The score on the text of the largest mean divergence."""
        return max(self.by_text or (self,), key=lambda one: one.kl_mean_nats)

    @property
    def worst_ppl(self) -> PackScore:
        """The score on the text of the largest increase of perplexity."""
        return max(self.by_text or (self,), key=lambda one: one.ppl_increase_pct)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; with several texts also the worst of them."""
        value = _plain(self)
        if self.by_text:
            kl, ppl = self.worst_kl, self.worst_ppl
            value["worst_kl_text"] = kl.text
            value["worst_kl_mean_nats"] = kl.kl_mean_nats
            value["worst_kl_mean_se_nats"] = kl.kl_mean_se_nats
            value["worst_ppl_text"] = ppl.text
            value["worst_ppl_increase_pct"] = ppl.ppl_increase_pct
            value["worst_ppl_increase_se_pct"] = ppl.ppl_increase_se_pct
        return value

    @classmethod
    def from_cache(cls, value: dict[str, Any]) -> PackScore:
        """Return the score of which `value` is `asdict`, after JSON."""
        by_text = tuple(cls.from_cache(one) for one in value["by_text"])
        return cls(**{**value, "by_text": by_text, "edits": tuple(value.get("edits", ()))})


def _plain(score: Baseline | PackScore) -> dict[str, Any]:
    """Return all fields of a score but texts and kind; edits and table bytes if there are any."""
    value = asdict(score)
    del value["text"], value["by_text"]
    value.pop("kind", None)
    for key in ("edits", "table_bytes"):
        if not value.get(key):
            value.pop(key, None)
    return value


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result of ``tolpack eval``; ``context`` is the window length in tokens, and ``warnings`` say
    what makes its figures doubtful.
    """

    context: int
    baseline: Baseline
    packs: tuple[PackScore, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; with several texts, ``texts`` holds the same for each."""
        value = {
            "context": self.context,
            "baseline": self.baseline.to_json(),
            "packs": [pack.to_json() for pack in self.packs],
            "warnings": list(self.warnings),
        }
        texts = [{"text": alone.baseline.text, **alone.to_json()} for alone in self._on_each_text()]
        for one in texts:  # they are of the whole
            del one["warnings"]
        return {**value, "texts": texts} if texts else value

    def _on_each_text(self) -> list[Evaluation]:
        return [
            Evaluation(self.context, base, tuple(pack.by_text[number] for pack in self.packs))
            for number, base in enumerate(self.baseline.by_text)
        ]
