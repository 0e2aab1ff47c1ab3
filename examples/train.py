"""Train a dense model, a MemoryLLM or a Flex-MemoryLLM, and save a checkpoint for tolpack.

Read `main` first: it is the whole way from files to a checkpoint. The model is in
``memoryllm_model.py``; β says how much of its feed-forward networks reads the context::

    pip install -e '.[build,plot]'
    python examples/demo_text.py text                       # Python's own documentation
    python examples/train.py --data text/train.txt --valid text/validation.txt --out model --beta 2
    tolpack build model -o model.tolpack && tolpack eval model model.tolpack --text text/heldout.txt

Data: UTF-8 text files, in which ``<|endoftext|>`` may separate documents, or one ``.npy`` of token
ids, which is mapped and not loaded. A byte-level BPE tokenizer is trained on the text unless one is
given. Batches are windows at random places, drawn from ``--seed``.

The folder ``--out`` gets the checkpoint (``config.json``, ``model.safetensors``,
``tokenizer.json``), ``log.jsonl``, a picture of the losses, and every ``--save-every`` steps
``training.pt``, from which ``--resume`` goes on exactly: weights, optimizer, random states, batches
and log are as if the run had not stopped.

Several processes share each batch, on GPUs or on CPUs::

    torchrun --standalone --nproc-per-node 8 examples/train.py --data ids.npy --valid valid.npy …

Losses are in nats per token. Gradient norms are those before clipping. FLOPs are those of this
trainer, which computes FFN-M once for each distinct token of a batch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memoryllm_model import ModelConfig, Transformer, parameter_group, split_ffn
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import distributed, nn
from torch.nn import functional as F

END_OF_TEXT = "<|endoftext|>"  # id 0 of a tokenizer that is trained here
HELD_OUT_SHARE = 0.05  # of the data, if no --valid is given
# What may differ when a run is resumed: everything else changes its result.
FREE = {"resume", "stop_at", "out", "threads", "device", "log_every", "eval_every", "save_every"}
TokenIds = NDArray[Any]  # one-dimensional, of any integer dtype


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train as the command line says; returns (and the command prints) what was reached."""
    args = parse_arguments(arguments)
    with processes(args) as process:
        args.out.mkdir(parents=True, exist_ok=True)
        data = load_data(args, process)
        torch.manual_seed(args.seed)
        model = Transformer(model_config(args, data), args.dropout, zero_outputs=args.zero_outputs)
        model.to(process.device)
        optimizer = make_optimizer(model)
        batches = torch.Generator().manual_seed(args.seed)
        if process.rank:
            torch.manual_seed(args.seed + process.rank)  # processes drop different values
        done = Progress()
        if args.resume:
            done = load_training(args, process, model, optimizer, batches)
        log = Log(args, process, model, done)

        network = process.share(model)
        last = min(args.steps, args.stop_at or args.steps)
        while done.step < last:
            started = time.perf_counter()
            set_learning_rate(optimizer, done.step + 1, args)
            windows = draw_batch(data.train, args, process, batches)
            loss = accumulate_gradients(network, windows, args)
            norms = gradient_norms(model) if log.wants(done.step + 1) else {}
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss, flops = process.mean(loss), process.sum(training_flops(model.config, windows))
            done.add(loss, flops, args.batch * args.context, time.perf_counter() - started)
            if log.wants(done.step):
                log.write(done, norms, optimizer, data.valid)
            if done.step % args.save_every == 0 or done.step == last < args.steps:
                save_training(args, process, model, optimizer, batches, done)

        if done.step < args.steps:
            return {"step": done.step, "stopped": True}
        return finish(args, process, model, data, done)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a dense model, MemoryLLM or Flex.")
    add: Callable[..., object] = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, help="text files, or one .npy of token ids")
    add("--valid", type=Path, help="the same to validate on; default: the last 5 %% of the data")
    add("--tokenizer", type=Path, help="tokenizer.json; default: one trained on the text")
    add("--vocab-size", type=int, default=4096, help="if no tokenizer is given")
    add("--out", type=Path, required=True, help="folder to write")
    add(
        "--beta", type=float, default=0, help="FFN-C's share of --ffn: 0 MemoryLLM, all of it dense"
    )
    add("--ffn", type=float, default=8, help="weights of a layer's FFNs, in hidden_size²")
    add("--flex-input", choices=["post_attention", "residual"], default="post_attention")
    add("--hidden-size", type=int, default=192)
    add("--layers", type=int, default=6)
    add("--heads", type=int, default=6)
    add("--context", type=int, default=256, help="tokens of a window")
    add("--batch", type=int, default=8, help="windows of a step, over all processes")
    add(
        "--micro-batch", type=int, help="windows at once in a process; default: its share of a step"
    )
    add("--steps", type=int, default=2000, help="optimizer steps")
    add("--learning-rate", type=float, default=4e-3, help="peak learning rate")
    add("--dropout", type=float, default=0.0, help="on what a layer adds to the stream")
    add("--zero-outputs", action="store_true", help="start with layers that add nothing")
    add("--precision", choices=["float32", "bf16"], default="float32", help="of matrix products")
    add("--weights", choices=["bf16", "float32"], default="bf16", help="dtype of the checkpoint")
    add("--seed", type=int, default=0, help="of initialisation, batches and dropout")
    add("--resume", action="store_true", help="go on from training.pt in --out")
    add("--stop-at", type=int, help="save and stop after this step, to be resumed")
    add("--log-every", type=int, default=20, help="steps between lines of the log")
    add("--eval-every", type=int, default=100, help="steps between validations")
    add("--save-every", type=int, default=500, help="steps between saves of training.pt")
    add("--valid-tokens", type=int, default=65536, help="validate on no more than so many")
    add("--device", help="cpu or cuda; default: cuda if there is one")
    add("--threads", type=int, help="CPU threads of a process; default: torch's choice")
    args = parser.parse_args(arguments)
    if not 0 <= args.beta <= args.ffn:
        parser.error(f"--beta is {args.beta}, expected 0 … {args.ffn} (--ffn)")
    if args.hidden_size % (2 * args.heads):
        wrong = f"--hidden-size {args.hidden_size}"
        parser.error(f"{wrong} is not a multiple of 2 · --heads {args.heads}")
    if (args.out / "training.pt").exists() and not args.resume:
        parser.error(f"{args.out} holds a run that stopped: --resume it, or remove its training.pt")
    return args


# ---- processes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """One of the processes that share a batch: the only one, unless `torchrun` started it."""

    rank: int
    count: int
    device: torch.device

    def share(self, model: Transformer) -> nn.Module:
        """Return a module that averages gradients over all processes."""
        if self.count == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)

    def sum(self, value: float) -> float:
        """Sum a number over all processes."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return total.item()

    def mean(self, value: float) -> float:
        """Average a number over all processes."""
        return self.sum(value) / self.count

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            distributed.barrier()


@contextlib.contextmanager
def processes(args: argparse.Namespace) -> Iterator[Process]:
    """Join the processes of `torchrun`, if it started this one."""
    if args.threads:
        torch.set_num_threads(args.threads)
    kind = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(kind)
    if kind == "cuda":
        device = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield Process(0, 1, device)
        return
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        count = distributed.get_world_size()
        if args.batch % count:
            sys.exit(f"--batch {args.batch} cannot be shared by {count} processes")
        yield Process(distributed.get_rank(), count, device)
    finally:
        distributed.destroy_process_group()


# ---- data ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Token ids to train and to validate on."""

    vocab_size: int
    train: TokenIds
    valid: TokenIds


def load_data(args: argparse.Namespace, process: Process) -> Data:
    """Read or encode the data; a tokenizer is trained by the first process, for all."""
    vocab_size, tokenizer, own = args.vocab_size, None, args.out / "tokenizer.json"
    if process.rank == 0 and not args.resume:
        if args.tokenizer is not None:
            own.write_bytes(args.tokenizer.read_bytes())
        elif args.data[0].suffix != ".npy":
            texts = [text for path in args.data for text in read_documents(path)]
            own.write_text(train_tokenizer(texts, vocab_size).to_str(), encoding="utf-8")
    process.wait()
    if args.tokenizer is not None or args.data[0].suffix != ".npy":
        tokenizer = Tokenizer.from_file(str(own))
        vocab_size = tokenizer.get_vocab_size()
    train = read_ids(args.data, tokenizer)
    held_out = round(HELD_OUT_SHARE * len(train))
    valid = read_ids([args.valid], tokenizer) if args.valid else train[-held_out:]
    train = train if args.valid else train[:-held_out]
    for name, ids in (("--data", train), ("--valid", valid)):
        if len(ids) <= args.context or int(ids.max()) >= vocab_size:
            sys.exit(
                f"{name}: {len(ids)} ids up to {ids.max() if len(ids) else None}, expected more "
                f"than --context {args.context}, below the vocabulary of {vocab_size}"
            )
    if process.rank == 0:
        say(f"{len(train):,} tokens to train on, {len(valid):,} to validate, {vocab_size:,} kinds")
    return Data(vocab_size, train, valid[: args.valid_tokens + 1])


def read_documents(path: Path) -> list[str]:
    """Return the documents of a text file, which ``<|endoftext|>`` separates."""
    return [text for text in path.read_text(encoding="utf-8").split(END_OF_TEXT) if text]


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer; its first token is the end of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def read_ids(paths: list[Path], tokenizer: Tokenizer | None) -> TokenIds:
    """Return the ids of a ``.npy``, or of texts, each document ended by its own token."""
    if paths[0].suffix == ".npy":
        ids: TokenIds = np.load(paths[0], mmap_mode="r")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            sys.exit(f"{paths[0]} holds {ids.dtype} {ids.shape}, expected one row of integers")
        return ids
    assert tokenizer is not None
    end = tokenizer.token_to_id(END_OF_TEXT)
    ends = [] if end is None else [end]
    texts = [text for path in paths for text in read_documents(path)]
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return np.array([i for one in encoded for i in (*one.ids, *ends)], np.int64)


def draw_batch(
    ids: TokenIds, args: argparse.Namespace, process: Process, batches: torch.Generator
) -> torch.Tensor:
    """Return this process's windows of ``context + 1`` ids, at random places."""
    starts = torch.randint(len(ids) - args.context, (args.batch, 1), generator=batches)
    own = starts[process.rank :: process.count].numpy()
    windows = ids[own + np.arange(args.context + 1)].astype(np.int64)
    return torch.from_numpy(windows).to(process.device)


# ---- a step ----------------------------------------------------------------------------------


def model_config(args: argparse.Namespace, data: Data) -> ModelConfig:
    """Return the sizes that the command line asks for."""
    inner, memory_inner = split_ffn(args.hidden_size, args.beta, args.ffn)
    return ModelConfig(
        data.vocab_size, args.hidden_size, args.layers, args.heads, inner, memory_inner,
        args.context, args.flex_input,
    )  # fmt: skip


def make_optimizer(model: Transformer) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, step: int, args: argparse.Namespace
) -> None:
    """Linear warm-up over a twentieth of the run, then a cosine to a fiftieth of the peak."""
    warmup = max(1, args.steps // 20)
    share = step / warmup
    if step > warmup:
        done = (step - warmup) / max(1, args.steps - warmup)
        share = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
    for group in optimizer.param_groups:
        group["lr"] = args.learning_rate * share


def accumulate_gradients(
    network: nn.Module, windows: torch.Tensor, args: argparse.Namespace
) -> float:
    """Add the gradients of the mean loss over `windows`; returns that loss."""
    total = 0.0
    for part in torch.split(windows, args.micro_batch or len(windows)):
        with torch.autocast(windows.device.type, torch.bfloat16, args.precision == "bf16"):
            loss = next_token_loss(network, part) * (len(part) / len(windows))
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def next_token_loss(network: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood in nats of each token after the first."""
    return F.cross_entropy(network(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def gradient_norms(model: Transformer) -> dict[str, float]:
    """Return the norm of the gradient of each group of parameters."""
    squares: dict[str, torch.Tensor | float] = defaultdict(float)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            squares[parameter_group(name)] += parameter.grad.square().sum()
    return {group: math.sqrt(total) for group, total in squares.items()}


def training_flops(config: ModelConfig, windows: torch.Tensor) -> int:
    """FLOPs of a forward and backward pass over `windows`, FFN-M once for each distinct token."""
    fed = windows[:, :-1]
    return 3 * config.forward_flops(fed.numel(), fed.shape[1], len(torch.unique(fed)))


@torch.no_grad()
def validation_loss(model: Transformer, ids: TokenIds, batch: int) -> float:
    """Loss in float32 over windows that do not overlap, as `tolpack eval` defines it."""
    device, context = model.embed_tokens.weight.device, model.config.context
    was_training, total = model.training, 0.0
    model.eval()
    full = (len(ids) - 1) // context
    starts = [np.arange(first, min(first + batch, full)) for first in range(0, full, batch)]
    places = [start[:, None] * context + np.arange(context + 1) for start in starts]
    if full * context < len(ids) - 1:
        places.append(np.arange(full * context, len(ids))[None])
    for place in places:
        windows = torch.from_numpy(ids[place].astype(np.int64)).to(device)
        total += next_token_loss(model, windows).item() * windows[:, 1:].numel()
    model.train(was_training)
    return total / (len(ids) - 1)


# ---- what a run leaves -----------------------------------------------------------------------


@dataclass
class Progress:
    """How far a run is; `losses` are those since the last line of the log."""

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def add(self, loss: float, flops: float, tokens: int, seconds: float) -> None:
        """Count a step."""
        self.step += 1
        self.tokens += tokens
        self.flops += flops
        self.seconds += seconds
        self.losses.append(loss)


class Log:
    """Lines of ``log.jsonl``, and progress on stderr; a resumed run cuts what it will repeat."""

    def __init__(
        self, args: argparse.Namespace, process: Process, model: Transformer, done: Progress
    ) -> None:
        self.args, self.process, self.model = args, process, model
        self.path, self.start = args.out / "log.jsonl", (time.perf_counter(), done.step)
        if process.rank == 0:
            lines = read_log(self.path) if args.resume else []
            kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= done.step]
            self.path.write_text("".join(kept), encoding="utf-8")

    def wants(self, step: int) -> bool:
        """Whether a step gets a line."""
        args = self.args
        return step == args.steps or not (step % args.log_every and step % args.eval_every)

    def write(
        self,
        done: Progress,
        norms: dict[str, float],
        optimizer: torch.optim.Optimizer,
        valid: TokenIds,
    ) -> None:
        """Write a line: mean loss since the last one, norms, and every so often validation loss."""
        line: dict[str, Any] = {**asdict(done), "loss": float(np.mean(done.losses))}
        del line["losses"]
        done.losses.clear()
        if self.process.rank:
            return
        line["learning_rate"] = optimizer.param_groups[0]["lr"]
        line["gradient_norm"] = norms
        if done.step % self.args.eval_every == 0 or done.step == self.args.steps:
            line["validation_loss"] = validation_loss(self.model, valid, self.args.batch)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.say(line)

    def say(self, line: dict[str, Any]) -> None:
        """Tell how far the run is."""
        began, first = self.start
        each = (time.perf_counter() - began) / (line["step"] - first)
        left = round(each * (self.args.steps - line["step"]))
        valid = f"  validation {line['validation_loss']:.3f}" if "validation_loss" in line else ""
        say(
            f"step {line['step']}/{self.args.steps}  loss {line['loss']:.3f}{valid}  "
            f"{self.args.batch * self.args.context / each:,.0f} tokens/s  "
            f"left {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        )


def save_training(
    args: argparse.Namespace,
    process: Process,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    batches: torch.Generator,
    done: Progress,
) -> None:
    """Write all that the next step depends on."""
    random = [torch.get_rng_state()]
    if process.device.type == "cuda":
        random.append(torch.cuda.get_rng_state(process.device))
    all_random: list[Any] = [random]
    if process.count > 1:
        all_random = [None] * process.count
        distributed.all_gather_object(all_random, random)
    if process.rank == 0:
        state = {
            "settings": settings(args),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "batches": batches.get_state(),
            "random": all_random,
            "progress": asdict(done),
        }
        partial = args.out / "training.pt.partial"
        torch.save(state, partial)
        partial.replace(args.out / "training.pt")
    process.wait()


def load_training(
    args: argparse.Namespace,
    process: Process,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    batches: torch.Generator,
) -> Progress:
    """Take up what `save_training` wrote."""
    path = args.out / "training.pt"
    if not path.exists():
        sys.exit(f"{path} is not there: nothing to resume")
    state = torch.load(path, map_location="cpu", weights_only=True)
    now, then = settings(args), state["settings"]
    other = [f"--{name.replace('_', '-')}" for name in now if now[name] != then.get(name)]
    if other:
        sys.exit(f"{path} was made with other {', '.join(other)}: give the same")
    if len(state["random"]) != process.count:
        sys.exit(f"{path} was made by {len(state['random'])} processes, not {process.count}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    batches.set_state(state["batches"])
    random = state["random"][process.rank]
    torch.set_rng_state(random[0])
    if process.device.type == "cuda":
        torch.cuda.set_rng_state(random[1], process.device)
    return Progress(**state["progress"])


def settings(args: argparse.Namespace) -> dict[str, str]:
    """Return the settings that a result depends on."""
    return {name: str(value) for name, value in vars(args).items() if name not in FREE}


def finish(
    args: argparse.Namespace, process: Process, model: Transformer, data: Data, done: Progress
) -> dict[str, Any]:
    """Write the checkpoint and the picture; returns losses before and after its rounding."""
    found: dict[str, Any] = {}
    if process.rank == 0:
        found = {
            "model_type": model.config.model_type,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "step": done.step,
            "tokens": done.tokens,
            "flops": done.flops,
            "seconds": round(done.seconds, 1),
            "validation_loss": validation_loss(model, data.valid, args.batch),
        }
        save_checkpoint(model, args)
        found["validation_loss_saved"] = validation_loss(model, data.valid, args.batch)
        found["validation_ppl_saved"] = math.exp(found["validation_loss_saved"])
        plot_losses(args.out)
        (args.out / "training.pt").unlink(missing_ok=True)
    process.wait()
    return found


def save_checkpoint(model: Transformer, args: argparse.Namespace) -> None:
    """Write ``config.json`` and ``model.safetensors``, and round the model to what they hold."""
    dtype = torch.bfloat16 if args.weights == "bf16" else torch.float32
    tensors = {f"model.{n}": p.detach().to("cpu", dtype) for n, p in model.named_parameters()}
    save_file(tensors, args.out / "model.safetensors")
    (args.out / "model.safetensors").chmod(0o644)  # safetensors makes it private to its owner
    config = json.dumps(model.config.to_json(), indent=2) + "\n"
    (args.out / "config.json").write_text(config, encoding="utf-8")
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data.to(dtype))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a ``log.jsonl``; one that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def plot_losses(folder: Path) -> None:
    """Draw training and validation loss against tokens: ``loss.png``."""
    try:
        import matplotlib as mpl
    except ImportError:
        say("no picture of the losses: pip install 'tolpack[plot]'")
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lines = read_log(folder / "log.jsonl")
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, style in (("loss", "-"), ("validation_loss", "o-")):
        own = [line for line in lines if name in line]
        x, y = [line["tokens"] for line in own], [line[name] for line in own]
        axes.plot(x, y, style, label=name.replace("_", " "), ms=3, lw=1)
    axes.set_xlabel("tokens")
    axes.set_ylabel("nats per token")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(folder / "loss.png", dpi=120)
    plt.close(figure)


def say(line: str) -> None:
    """Print progress to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    result = main()
    if result:
        print(json.dumps(result, indent=2))
