"""Train a small Gemma 3n whose table of per-layer embeddings (PLE) can be measured.

Why: what an error in a PLE table costs can only be measured in a model that was trained with one,
and the published ones do not run on two cores in minutes.

Method: transformers' own ``Gemma3nForCausalLM``, text part only, trained from its stock
initialisation on a text the user names. The last 5 % of the text's tokens are held out. The
weights that are kept are those with the lowest loss there.

Proportions: Gemma 3n E2B has hidden size 2048, 30 layers, PLE width 256 and 262,144 tokens.

========================================  ==========  ==========
figure                                    E2B         here
========================================  ==========  ==========
values of the PLE table / all the others  0.83        0.95
values of the PLE table / embedding       3.75        2.7
vocabulary / hidden size                  128         43
PLE width / hidden size                   1/8         1/3
layers that reuse keys and values         1/3         1/2
AltUp streams                             4           2
========================================  ==========  ==========

The first line is kept, because it says how much of the model a pack makes smaller. The PLE width is
not an eighth of the hidden size: fields of 24 values would pay for scales and blocks that real
fields of 256 values do not pay for. 64 is the narrowest field that holds a whole group of 64. A row
has 512 values, two super-blocks of GGUF's K types. What only costs time is as cheap as the
configuration allows: two AltUp streams, Laurel of rank 8, an FFN of twice the hidden size, no
activation sparsity.

Gemma has no dropout for such a short text, so hooks put it behind the three norms through which a
layer adds to its streams, and behind the PLE table. They are not part of the model that is saved.

Command, 40 minutes on one of two cores, from a checkout::

    pip install -e '.[hf]'
    python examples/train_ple_model.py --text text.txt --tokenizer tokenizer.json --out model

The last lines say what the table is worth: perplexity on the held-out tokens with the table, and
with a table of zeros.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

Model = Any  # a Gemma3nForCausalLM; some of its methods have no types
HELD_OUT_SHARE = 0.05
ADDED_NORMS = (
    "post_attention_layernorm",
    "post_feedforward_layernorm",
    "post_per_layer_input_norm",
)


def main() -> None:
    """Train, keep the best weights and say what the table is worth."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    train_ids, held_out = split(token_ids(args.text, tokenizer))
    model: Model = Gemma3nForCausalLM(configuration(tokenizer.get_vocab_size(), args))
    table = model.get_per_layer_input_embeddings().weight
    total = sum(parameter.numel() for parameter in model.parameters())
    say(f"{total} values, {table.numel()} of them in the table; {len(train_ids)} training tokens")
    add_dropout(model, args.dropout)
    best = train(model, train_ids, held_out, args)
    model = Gemma3nForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    found = {
        "held_out_ppl": math.exp(best),
        "held_out_ppl_saved": perplexity(model, held_out, args),
    }
    with torch.no_grad():
        model.get_per_layer_input_embeddings().weight.zero_()
    found["held_out_ppl_without_table"] = perplexity(model, held_out, args)
    found["held_out_ppl_unigram"] = unigram_perplexity(train_ids, held_out, tokenizer)
    print(json.dumps(found, indent=2))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train a small Gemma 3n with per-layer embeddings."
    )
    add: Callable[..., object] = parser.add_argument
    add("--text", type=Path, required=True, help="text to train on, UTF-8")
    add("--tokenizer", type=Path, required=True, help="tokenizer.json; its first token is padding")
    add("--out", type=Path, required=True, help="folder to write")
    add("--minutes", type=float, default=40.0, help="length of the run, if --steps is not given")
    add("--steps", type=int, help="optimizer steps; with it a run can be repeated exactly")
    add("--seed", type=int, default=0, help="of initialisation, batches and dropout")
    add("--hidden", type=int, default=192, help="hidden size")
    add("--layers", type=int, default=8, help="layers, a multiple of 4")
    add("--intermediate", type=int, default=384, help="inner size of the FFNs")
    add("--ple-width", type=int, default=64, help="values of the table for each token and layer")
    add("--context", type=int, default=256, help="tokens of a window")
    add("--batch", type=int, default=4, help="windows of a step")
    add("--learning-rate", type=float, default=3e-3, help="peak learning rate")
    add("--dropout", type=float, default=0.15, help="on the table's rows and on what layers add")
    add(
        "--report-seconds", type=float, default=120.0, help="seconds between looks at held-out loss"
    )
    add("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


def configuration(vocab_size: int, args: argparse.Namespace) -> Gemma3nTextConfig:
    """Return the model's configuration; half of the layers reuse keys and values."""
    return Gemma3nTextConfig(
        vocab_size=vocab_size,
        vocab_size_per_layer_input=vocab_size,
        hidden_size=args.hidden,
        hidden_size_per_layer_input=args.ple_width,
        num_hidden_layers=args.layers,
        intermediate_size=args.intermediate,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=args.hidden // 4,
        layer_types=[
            "sliding_attention",
            "sliding_attention",
            "sliding_attention",
            "full_attention",
        ]
        * (args.layers // 4),
        num_kv_shared_layers=args.layers // 2 // 4 * 4,
        sliding_window=args.context // 2,
        max_position_embeddings=args.context,
        activation_sparsity_pattern=[0.0] * args.layers,
        altup_num_inputs=2,
        laurel_rank=8,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )


# ---- text ------------------------------------------------------------------------------------


def token_ids(path: Path, tokenizer: Tokenizer) -> torch.Tensor:
    """Return the int64 ids of a whole text, without special tokens."""
    text = path.read_text(encoding="utf-8")
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)


def split(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all ids but the last 5 %, and the last 5 %."""
    first = len(ids) - round(HELD_OUT_SHARE * len(ids))
    return ids[:first], ids[first:]


def unigram_perplexity(train_ids: torch.Tensor, ids: torch.Tensor, tokenizer: Tokenizer) -> float:
    """Perplexity of the training text's token frequencies (add one) on ``ids[1:]``."""
    counts = torch.bincount(train_ids, minlength=tokenizer.get_vocab_size()).double() + 1
    return math.exp(-(counts / counts.sum()).log()[ids[1:]].mean().item())


# ---- training --------------------------------------------------------------------------------


def add_dropout(model: Model, share: float) -> None:
    """Drop values of the table's rows and of what each layer adds, while training."""

    def dropped(module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, share, module.training)

    model.get_per_layer_input_embeddings().register_forward_hook(dropped)
    for name, module in model.named_modules():
        if name.endswith(ADDED_NORMS):
            module.register_forward_hook(dropped)


def train(
    model: Model, ids: torch.Tensor, held_out: torch.Tensor, args: argparse.Namespace
) -> float:
    """Run AdamW on random windows; save the weights whenever the held-out loss (nats) is lowest."""
    optimizer = make_optimizer(model)
    source = torch.Generator().manual_seed(args.seed)
    best, running, step, done = math.inf, 0.0, 0, 0.0
    start = reported = time.perf_counter()
    model.train()
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * learning_rate_share(done)
        loss = next_token_loss(model, draw_batch(ids, args, source))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, now = step + 1, time.perf_counter()
        done = step / args.steps if args.steps else (now - start) / (60 * args.minutes)
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if done >= 1 or now - reported > args.report_seconds:
            found = math.log(perplexity(model, held_out, args))
            say(
                f"step {step}  {100 * done:.0f} %  {now - start:.0f} s  train loss {running:.3f}  "
                f"held out {found:.3f}  table rms {table_rms(model):.3f}"
            )
            if found < best:
                best = found
                save(model, args)
            reported = time.perf_counter()
    return best


def make_optimizer(model: Model) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def learning_rate_share(done: float) -> float:
    """Linear warm-up over a twentieth of the run, then a cosine to a fiftieth of the peak."""
    if done < 0.05:
        return max(done, 0.001) / 0.05
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - 0.05) / 0.95))


def draw_batch(
    ids: torch.Tensor, args: argparse.Namespace, source: torch.Generator
) -> torch.Tensor:
    """Return ``batch`` windows of ``context + 1`` ids at random places."""
    starts = torch.randint(len(ids) - args.context, (args.batch, 1), generator=source)
    return ids[starts + torch.arange(args.context + 1)]


def next_token_loss(model: Model, windows: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood in nats of each token after the first."""
    logits = model(windows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: Model, ids: torch.Tensor, args: argparse.Namespace) -> float:
    """Perplexity over non-overlapping windows, defined as in ``tolpack/model``."""
    was_training, total = model.training, 0.0
    model.eval()
    for start in range(0, len(ids) - 1, args.context):
        window = ids[None, start : start + args.context + 1]
        total += next_token_loss(model, window).item() * (window.shape[1] - 1)
    model.train(was_training)
    return math.exp(total / (len(ids) - 1))


def table_rms(model: Model) -> float:
    """Root mean square of what lookups return; the other summand has 1."""
    embeddings = model.get_per_layer_input_embeddings()
    rms: float = embeddings.scalar_embed_scale * embeddings.weight.square().mean().sqrt().item()
    return rms


# ---- files -----------------------------------------------------------------------------------


def save(model: Model, args: argparse.Namespace) -> None:
    """Write the folder that transformers and tolpack open, with weights in bfloat16."""
    rounded = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    del rounded["lm_head.weight"]  # the embedding
    model.save_pretrained(args.out, state_dict=rounded)
    config = json.loads((args.out / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "bfloat16"
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(args.tokenizer, args.out / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": args.context}
    (args.out / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def say(line: str) -> None:
    """Print progress to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
