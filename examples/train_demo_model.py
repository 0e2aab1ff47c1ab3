"""Train the small MemoryLLM that ships with tolpack (``tolpack/demo/model``).

Why: ``tolpack demo``, the tests and the documentation need a trained checkpoint, because random
tables compress like noise, and one that is small enough to ship.

Method: the text is the documentation in Python's own standard library: the topics of ``help()``,
and the docstrings and longer comments of its modules. The modules are parsed and never imported.
Whole topics and modules are held out by a hash of their names. No paragraph is used twice, and
paragraphs that share twelve words in a row with held-out text are not trained on. The model
follows the equations of ``tolpack/model/decoder.py``::

    X ← X + Attn(Norm_in(X)) + FFN_M(Norm_mem(X0))        X0 = embed(token)

Both terms of a layer read and update the same X. The memory FFNs depend on the token alone, so they
are computed once per distinct token of a batch, which saves training time.

Command, about 15 minutes on two cores, from a checkout::

    pip install -e '.[build]'
    python examples/train_demo_model.py

Where other programs compete for the cores, ``OMP_WAIT_POLICY=passive`` before ``python`` keeps the
threads from spinning while they wait for each other (here a factor of six).

The last lines compare the saved files, read back through tolpack, with the trained weights.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import json
import math
import re
import sys
import sysconfig
import time
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F

from tolpack.model.decoder import Decoder
from tolpack.model.perplexity import score
from tolpack.model.text import read_token_ids
from tolpack.sources.checkpoint.checkpoint import open_checkpoint

END_OF_TEXT = "<|endoftext|>"  # id 0
OUTPUT = Path(__file__).resolve().parent.parent / "tolpack" / "demo" / "model"

VOCAB_SIZE = 4096
HIDDEN_SIZE = 192
NUM_LAYERS = 6
NUM_HEADS = 6
MEMORY_INNER = 288
CONTEXT = 256
NORM_EPS = 1e-5
ROPE_THETA = 10_000.0

CONFIG = {
    "model_type": "memoryllm",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": NUM_HEADS,
    "memory_intermediate_size": MEMORY_INNER,
    "norm": "rmsnorm",
    "rms_norm_eps": NORM_EPS,
    "rope_theta": ROPE_THETA,
    "rope_interleaved": False,
    "max_position_embeddings": CONTEXT,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}

# ---- text ------------------------------------------------------------------------------------

SKIPPED_FOLDERS = {
    "site-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo",
    "encodings", "ensurepip", "pydoc_data", "__pycache__",
}  # fmt: skip
SHORTEST_TEXT = 80  # characters; shorter docstrings and comments say little more than the name
SHORTEST_UNIQUE = 60  # characters; shorter paragraphs ("Arguments:") may be repeated
LONGEST_HELD_OUT = 30_000  # characters of one document, so that no single one dominates
HELD_OUT_CHARACTERS = 160_000
QUOTE_WORDS = 12  # as many words in a row count as a quotation
EMAIL = re.compile(r"\S@\S+\.\S")
VALIDATION_CHARACTERS = 40_000


@dataclass(frozen=True, slots=True)
class Document:
    """The text of one help topic or one module; `plain` if it carries no copyright notice."""

    name: str
    text: str
    plain: bool


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents of each part. `validation` compares settings; `heldout` only reports."""

    train: list[str]
    validation: list[str]
    heldout: list[str]


def collect_documents() -> list[Document]:
    """Return the topics of ``help()`` and the documentation of every stdlib module, by name."""
    found = [Document(f"topic {name}", text, plain=True) for name, text in topics.items()]
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in library.rglob("*.py"):
        relative = path.relative_to(library)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts):
            source = path.read_text(encoding="utf-8", errors="replace")
            plain = not re.search(r"copyright|\(c\)|©", source, re.IGNORECASE)
            text = "\n\n".join(module_texts(source))
            found.append(Document(f"module {relative.as_posix()}", text, plain))
    return sorted((d for d in found if d.text.strip()), key=lambda d: d.name)


def module_texts(source: str) -> Iterator[str]:
    """Yield a module's docstrings and blocks of comment lines that are long enough, in order."""
    texts = [*docstrings(source), *comment_blocks(source)]
    for _, text in sorted(texts):
        if len(text) >= SHORTEST_TEXT and is_prose(text):
            yield text


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, docstring) of the module, its classes and its functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def comment_blocks(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each run of lines that hold nothing but a comment."""
    first, previous, block = 0, -1, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.line.lstrip()[:1] != "#":
            continue
        line = token.start[0]
        if line != previous + 1:
            yield first, "\n".join(block).strip()
            first, block = line, []
        block.append(re.sub(r"^#+:? ?", "", token.string).rstrip())
        previous = line
    yield first, "\n".join(block).strip()


def is_prose(text: str) -> bool:
    """Whether letters make up most of `text`: leaves out tables, rulers and disabled code."""
    visible = re.sub(r"\s", "", text)
    return sum(c.isalpha() for c in visible) >= 0.8 * len(visible)


def split_documents(documents: list[Document]) -> Corpus:
    """Hold out whole documents in the order of their names' hashes; train on the others.

    The held-out text comes first, so that what also occurs elsewhere (topics quote each other)
    is dropped from the training text. It is shipped, hence ``Document.plain``.
    """
    by_hash = sorted(documents, key=lambda d: hashlib.sha256(d.name.encode()).digest())
    candidates = [d for d in by_hash if d.plain and len(d.text) <= LONGEST_HELD_OUT]
    seen: set[str] = set()
    heldout = take(candidates, HELD_OUT_CHARACTERS, seen)
    validation = take(candidates, VALIDATION_CHARACTERS, seen)
    left = [unique_paragraphs(d.text, seen) for d in documents]
    quotable = {run for text in heldout + validation for run in word_runs(text)}
    train = [without_quotes(text, quotable) for text in left]
    return Corpus([text for text in train if text], validation, heldout)


def take(documents: list[Document], characters: int, seen: set[str]) -> list[str]:
    """Move documents from the front of the list until they hold `characters`."""
    texts: list[str] = []
    while documents and sum(map(len, texts)) < characters:
        texts.append(unique_paragraphs(documents.pop(0).text, seen))
    return [text for text in texts if text]


def unique_paragraphs(text: str, seen: set[str]) -> str:
    """Return `text` without the paragraphs in `seen`, and add the others to it.

    Paragraphs with an e-mail address are credits of people: they are left out as well.
    """
    kept = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        key = " ".join(paragraph.split())
        if key not in seen and not EMAIL.search(key):
            kept.append(paragraph.rstrip())
        if len(key) >= SHORTEST_UNIQUE:
            seen.add(key)
    enough = sum(map(len, kept)) >= SHORTEST_TEXT
    return "\n\n".join(kept).replace(END_OF_TEXT, "") if enough else ""


def without_quotes(text: str, quotable: set[tuple[str, ...]]) -> str:
    """Return `text` without the paragraphs that hold a run of words in `quotable`."""
    return "\n\n".join(p for p in text.split("\n\n") if quotable.isdisjoint(word_runs(p)))


def word_runs(text: str) -> Iterator[tuple[str, ...]]:
    """Yield every run of ``QUOTE_WORDS`` words."""
    words = text.split()
    return zip(*(words[i:] for i in range(QUOTE_WORDS)), strict=False)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer; its first token is the end of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_stream(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """Return int64 ids of all texts, each ended by id 0."""
    return torch.tensor([i for e in tokenizer.encode_batch(texts) for i in (*e.ids, 0)])


# ---- model -----------------------------------------------------------------------------------


class Attention(nn.Module):
    """Causal attention over rotary positions in halves."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE, bias=False)
        self.k_proj = nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE, bias=False)
        self.v_proj = nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE, bias=False)
        self.o_proj = nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Map (batch, length, hidden) to the same shape."""
        q, k, v = (
            proj(x).unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: torch.Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out


class MemoryFFN(nn.Module):
    """SwiGLU without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN_SIZE, MEMORY_INNER, bias=False)
        self.up_proj = nn.Linear(HIDDEN_SIZE, MEMORY_INNER, bias=False)
        self.down_proj = nn.Linear(MEMORY_INNER, HIDDEN_SIZE, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (tokens, hidden) to the same shape."""
        out: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention on the stream plus a memory of the token."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(HIDDEN_SIZE, eps=NORM_EPS)
        self.self_attn = Attention()
        self.memory_layernorm = nn.RMSNorm(HIDDEN_SIZE, eps=NORM_EPS)
        self.memory_mlp = MemoryFFN()
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: torch.Tensor,
        distinct: torch.Tensor,
        inverse: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Update `x`; row ``inverse`` of `distinct` is the embedding of each token."""
        memory = F.embedding(inverse, self.memory_mlp(self.memory_layernorm(distinct)))
        attended = self.self_attn(self.input_layernorm(x), *rotary)
        updated: torch.Tensor = x + self.dropout(attended + memory)
        return updated


class MemoryLLM(nn.Module):
    """The decoder; parameter names are those of the checkpoint without ``model.``."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB_SIZE, HIDDEN_SIZE)
        self.layers = nn.ModuleList(Layer(dropout) for _ in range(NUM_LAYERS))
        self.norm = nn.RMSNorm(HIDDEN_SIZE, eps=NORM_EPS)
        self.rotary = rotary_tables(CONTEXT)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=initial_std(name, parameter))

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, length, vocab) of int64 ids (batch, length)."""
        ids, inverse = torch.unique(token_ids, return_inverse=True)
        cos, sin = (t[: token_ids.shape[1]] for t in self.rotary)
        distinct = self.embed_tokens(ids)
        x = F.embedding(inverse, distinct)
        for layer in self.layers:
            x = layer(x, distinct, inverse, (cos, sin))
        return F.linear(self.norm(x), self.embed_tokens.weight)


def initial_std(name: str, weight: torch.Tensor) -> float:
    """Unit gain, smaller where a projection adds to the stream; the tied head starts flat."""
    if name.startswith("embed_tokens"):
        return 0.04
    gain = (2 * NUM_LAYERS) ** -0.5 if "o_proj" in name or "down_proj" in name else 1.0
    return gain * float(weight.shape[1] ** -0.5)


def rotary_tables(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin, each (length, head_dim / 2)."""
    head_dim = HIDDEN_SIZE // NUM_HEADS
    frequency = ROPE_THETA ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the halves of the last axis against each other."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


# ---- training --------------------------------------------------------------------------------


def train(
    model: MemoryLLM, ids: torch.Tensor, valid: torch.Tensor, args: argparse.Namespace
) -> None:
    """Run AdamW for ``args.steps`` steps on random windows; report on stderr."""
    optimizer = make_optimizer(model)
    source = torch.Generator().manual_seed(args.seed)
    running, start, tokens_per_step = 0.0, time.perf_counter(), args.batch * CONTEXT
    for step in range(1, args.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        loss = next_token_loss(model, draw_batch(ids, args.batch, source))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % args.report == 0 or step == args.steps:
            seconds = time.perf_counter() - start
            say(
                f"step {step}/{args.steps}  train loss {running:.3f}  "
                f"validation ppl {perplexity(model, valid):.1f}  "
                f"{step * tokens_per_step / seconds:.0f} tokens/s  {seconds:.0f} s"
            )


def make_optimizer(model: MemoryLLM) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up over a twentieth of the run, then a cosine to a fiftieth of the peak."""
    warmup = max(1, args.steps // 20)
    if step <= warmup:
        return float(args.learning_rate * step / warmup)
    done = (step - warmup) / max(1, args.steps - warmup)
    return float(args.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))))


def draw_batch(ids: torch.Tensor, batch: int, source: torch.Generator) -> torch.Tensor:
    """Return `batch` windows of ``CONTEXT + 1`` ids at random places."""
    starts = torch.randint(len(ids) - CONTEXT, (batch, 1), generator=source)
    return ids[starts + torch.arange(CONTEXT + 1)]


def next_token_loss(model: MemoryLLM, windows: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood in nats of each token after the first."""
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: MemoryLLM, ids: torch.Tensor) -> float:
    """Perplexity over non-overlapping windows, defined as in ``tolpack/model``."""
    was_training, total = model.training, 0.0
    model.eval()
    for start in range(0, len(ids) - 1, CONTEXT):
        window = ids[None, start : start + CONTEXT + 1]
        total += next_token_loss(model, window).item() * (window.shape[1] - 1)
    model.train(was_training)
    return math.exp(total / (len(ids) - 1))


def unigram_perplexity(train_ids: torch.Tensor, ids: torch.Tensor) -> float:
    """Perplexity of the training text's token frequencies (add one) on ``ids[1:]``."""
    counts = torch.bincount(train_ids, minlength=VOCAB_SIZE).double() + 1
    return math.exp(-(counts / counts.sum()).log()[ids[1:]].mean().item())


# ---- files -----------------------------------------------------------------------------------


def save(model: MemoryLLM, tokenizer: Tokenizer, heldout: str, folder: Path) -> None:
    """Write the checkpoint in bf16, its config, the tokenizer and the held-out text."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": p.detach().bfloat16() for name, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private to its owner
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    (folder / "heldout.txt").write_text(heldout, encoding="utf-8")


def round_to_bf16(model: MemoryLLM) -> None:
    """Round the weights, kept in float32, to what the checkpoint holds."""
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data.bfloat16())


def read_back_perplexity(folder: Path) -> float:
    """Held-out perplexity of the files in `folder`, through tolpack's own reader and decoder."""
    ids = read_token_ids(folder / "heldout.txt", VOCAB_SIZE, folder / "tokenizer.json")
    return score(Decoder(open_checkpoint(folder)), ids, CONTEXT).ppl


def say(line: str) -> None:
    """Print progress to stderr."""
    print(line, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line; the defaults make the shipped model."""
    parser = argparse.ArgumentParser(description="Train tolpack's demo model.")
    add: Callable[..., object] = parser.add_argument
    add("--output", type=Path, default=OUTPUT, help="folder to write")
    add("--steps", type=int, default=2000, help="optimizer steps")
    add("--batch", type=int, default=8, help="windows of 256 tokens in a step")
    add("--learning-rate", type=float, default=4e-3, help="peak learning rate")
    add("--dropout", type=float, default=0.1, help="on what a layer adds to the stream")
    add("--report", type=int, default=100, help="steps between progress lines")
    add("--threads", type=int, default=2, help="CPU threads")
    add("--seed", type=int, default=0, help="of initialisation, batches and dropout")
    return parser.parse_args()


def main() -> None:
    """Collect, train, save and check."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    corpus = split_documents(collect_documents())
    tokenizer = train_tokenizer(corpus.train)
    train_ids, valid_ids = (encode_stream(tokenizer, t) for t in (corpus.train, corpus.validation))
    heldout = "\n\n".join(corpus.heldout) + "\n"
    heldout_ids = torch.tensor(tokenizer.encode(heldout, add_special_tokens=False).ids)
    characters = sum(map(len, corpus.train))
    say(f"train: {characters} characters, {len(train_ids)} tokens; held out: {len(heldout_ids)}")
    model = MemoryLLM(args.dropout)
    train(model, train_ids, valid_ids, args)
    results = {"heldout_ppl_float32": perplexity(model.eval(), heldout_ids)}
    save(model, tokenizer, heldout, args.output)
    round_to_bf16(model)
    results["train_ppl"] = perplexity(model, train_ids)
    results["heldout_ppl"] = perplexity(model, heldout_ids)
    results["heldout_ppl_read_back"] = read_back_perplexity(args.output)
    results["heldout_unigram_ppl"] = unigram_perplexity(train_ids, heldout_ids)
    print(json.dumps(results, indent=2))
    if not np.isclose(results["heldout_ppl"], results["heldout_ppl_read_back"], rtol=1e-4):
        sys.exit("the files in the folder do not give the perplexity of the trained model")


if __name__ == "__main__":
    main()
