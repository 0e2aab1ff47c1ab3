"""Measure how the share of context-free memory bears on convergence.

Results: ``docs/training-dynamics.md``.

Five kinds of model with the same width, depth, total parameters and tokens are trained for three
seeds: dense, Flex-MemoryLLM with β = 3, 2 and 1, and MemoryLLM (β = 0). For one seed all kinds see
the same batches. The learning rate is the best of three for dense in shorter runs; the same
runs of MemoryLLM say whether its best rate is another one. Of each memory it is then measured how
small a pack gets: the smallest of ``--bits auto --rank auto`` whose mean KL divergence on the
held-out text is that of the 4-bit pack.

The text is that of ``demo_text.py``, unless ``--text`` names a folder with the same three files.
Runs that are finished are kept, and one that stopped goes on from its last save, so the command may
be given again at any time::

    pip install -e '.[build,plot]'
    python examples/convergence.py --folder build/convergence --json convergence.json
    python examples/convergence_plot.py convergence.json docs

What stands behind ``--`` goes to ``train.py``, and so sets the size.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import demo_text
import numpy as np
import train
from memoryllm_model import ModelConfig

import tolpack
from tolpack.evaluation.evaluator import Evaluator
from tolpack.model.decoder import Decoder
from tolpack.model.perplexity import score
from tolpack.model.text import read_token_ids
from tolpack.runtime.machine import machine, versions
from tolpack.sources.checkpoint.checkpoint import open_checkpoint

KINDS = {"dense": 8.0, "β = 3": 3.0, "β = 2": 2.0, "β = 1": 1.0, "MemoryLLM": 0.0}
RATES = (2e-3, 4e-3, 8e-3)
SIZE = "--hidden-size=96 --heads=4 --layers=6 --context=128 --batch=8 --zero-outputs --threads=1"
CALIBRATION_TOKENS, KL_TOKENS = 32_768, 16_384
MOST_PACKS, KL_TOLERANCE = 5, 0.04  # of the search for the 4-bit pack's KL divergence


@dataclass(frozen=True)
class Run:
    """One model of the experiment."""

    kind: str
    seed: int
    steps: int
    rate: float

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"beta-{KINDS[self.kind]:g}-seed-{self.seed}-steps-{self.steps}-rate-{self.rate:g}"


def main() -> None:
    """Train what is missing, pack what is missing, and write one JSON."""
    args = parse_arguments()
    prepare_text(args)
    tries = [
        Run(k, 0, args.rate_steps, rate) for rate in args.rates for k in ("dense", "MemoryLLM")
    ]
    rates = [shown_rate(run, trained(run, args)) for run in tries]
    rate = args.learning_rate or best_rate(rates, "dense")
    runs = [Run(k, seed, args.steps, rate) for seed in range(args.seeds) for k in KINDS]
    found = {run: trained(run, args) for run in runs}
    memories = [run for run in runs if run.kind != "dense" and run.seed < args.pack_seeds]
    packs = {run: packed(run, args) for run in memories}
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": versions("torch", "numpy"),
        "learning_rate": rate,
        "rates": rates,
        "runs": [{**vars(run), **shown_run(one, run, args)} for run, one in found.items()],
        "packs": [{"kind": run.kind, "seed": run.seed, **pack} for run, pack in packs.items()],
    }
    result["summary"] = summarize(result["runs"], result["packs"])
    args.json.write_text(json.dumps(result, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result["summary"], indent=2, ensure_ascii=False))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Loss and gradients by the share of memory.")
    add: Callable[..., object] = parser.add_argument
    add("--folder", type=Path, default=Path("build/convergence"), help="folder of all runs")
    add("--json", type=Path, default=Path("convergence.json"), help="file of the results")
    add("--text", type=Path, help="folder with train.txt, validation.txt and heldout.txt")
    add("--vocab-size", type=int, default=4096)
    add("--steps", type=int, default=800, help="steps of a run")
    add("--rates", type=float, nargs="+", default=RATES, help="peak rates to choose from")
    add("--rate-steps", type=int, default=400, help="steps of the runs that choose the rate")
    add("--learning-rate", type=float, help="peak rate; default: dense's best")
    add("--seeds", type=int, default=3)
    add("--pack-seeds", type=int, default=3, help="seeds whose memories are packed")
    add("more", nargs="*", default=SIZE.split(), help="settings of train.py, behind --")
    return parser.parse_args()


# ---- training --------------------------------------------------------------------------------


def prepare_text(args: argparse.Namespace) -> None:
    """Write the text, its tokenizer, and a part of the training text to calibrate packs with."""
    if (args.folder / "calibration.npy").exists():
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    text = args.text or args.folder / "text"
    if args.text is None:
        demo_text.write(text)
    tokenizer = train.train_tokenizer(train.read_documents(text / "train.txt"), args.vocab_size)
    tokenizer.save(str(args.folder / "tokenizer.json"))
    for part in ("train", "validation"):
        ids = train.read_ids([text / f"{part}.txt"], tokenizer).astype(np.uint32)
        np.save(args.folder / f"{part}.npy", ids)
    shutil.copyfile(text / "heldout.txt", args.folder / "heldout.txt")
    ids = np.load(args.folder / "train.npy")
    pieces = np.array_split(ids, 64)  # from all over the text
    each = CALIBRATION_TOKENS // len(pieces)
    np.save(args.folder / "calibration.npy", np.concatenate([piece[:each] for piece in pieces]))


def trained(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """Train a model, or go on with it, or read what it reached."""
    folder = args.folder / "runs" / run.name
    done = folder / "result.json"
    if not done.exists():
        train.say(f"{run.name}")
        command = [
            "--data", args.folder / "train.npy", "--valid", args.folder / "validation.npy",
            "--tokenizer", args.folder / "tokenizer.json", "--out", folder,
            "--beta", KINDS[run.kind], "--seed", run.seed, "--steps", run.steps,
            "--learning-rate", run.rate, "--log-every", 20, "--eval-every", 40,
            "--save-every", 200, *args.more,
        ]  # fmt: skip
        resume = ["--resume"] if (folder / "training.pt").exists() else []
        reached = train.main([*map(str, command), *resume])
        reached["heldout_loss"] = heldout_loss(folder, args.folder / "heldout.txt")
        done.write_text(json.dumps(reached) + "\n", encoding="utf-8")
    value: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    return {**value, "log": train.read_log(folder / "log.jsonl")}


def shown_rate(run: Run, reached: dict[str, Any]) -> dict[str, Any]:
    """Return what a run with one of the rates reached."""
    return {**vars(run), "validation_loss": reached["validation_loss"]}


def best_rate(rates: list[dict[str, Any]], kind: str) -> float:
    """Return the rate with the lowest validation loss."""
    own = [one for one in rates if one["kind"] == kind]
    return float(min(own, key=lambda one: one["validation_loss"])["rate"])


def heldout_loss(checkpoint: Path, text: Path) -> float:
    """Return the loss of a checkpoint in tolpack's reference decoder, nats per token."""
    decoder = Decoder(open_checkpoint(checkpoint))
    ids = read_token_ids(text, decoder.vocab_size, checkpoint / "tokenizer.json")
    return score(decoder, ids, decoder.max_position_embeddings or len(ids)).mean_nll_nats


def shown_run(reached: dict[str, Any], run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """Return a run's results and curves, each series as a list."""
    folder = args.folder / "runs" / run.name
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    log, sizes = reached["log"], model_config(config)
    looked = [line for line in log if "validation_loss" in line]
    groups = sorted({group for line in log for group in line["gradient_norm"]})
    return {
        "model_type": config["model_type"],
        "parameters": reached["parameters"],
        "tokens": reached["tokens"],
        "seconds": reached["seconds"],
        "training_flops": reached["flops"],
        "inference_flops_per_token": sizes.forward_flops(1, sizes.context, 0),
        "validation_loss": reached["validation_loss"],
        "heldout_loss": reached["heldout_loss"],
        "validation": series(looked, "step", "flops", "validation_loss"),
        "training": series(log, "step", "loss"),
        "gradient_norm": {
            group: [shortened(line["gradient_norm"][group]) for line in log] for group in groups
        },
    }


def model_config(config: dict[str, Any]) -> ModelConfig:
    """Return the sizes that a ``config.json`` tells."""
    return ModelConfig(
        config["vocab_size"],
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config.get("intermediate_size", 0),
        config.get("memory_intermediate_size", 0),
        config["max_position_embeddings"],
    )


def series(lines: list[dict[str, Any]], *names: str) -> dict[str, list[float]]:
    """Return the values of some names in lines of a log."""
    return {name: [shortened(line[name]) for line in lines] for name in names}


def shortened(value: float) -> float:
    """Round to five digits."""
    return float(f"{value:.5g}")


# ---- packs -----------------------------------------------------------------------------------


def packed(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """Return the 4-bit pack of a run's memory, and the ``auto`` pack that costs as much."""
    folder = args.folder / "runs" / run.name
    done = folder / "packs.json"
    if not done.exists():
        train.say(f"packs of {run.name}")
        text = args.folder / "heldout.txt"
        four = measured(folder, text, bits=4)
        auto = search(folder, text, four["kl"], args.folder / "calibration.npy")
        done.write_text(json.dumps({"four": four, "tried": auto}) + "\n", encoding="utf-8")
    found = json.loads(done.read_text(encoding="utf-8"))
    target = found["four"]["kl"]
    return {**found, "auto": min(found["tried"], key=lambda one: far(one["kl"], target))}


def search(folder: Path, text: Path, target: float, calibration: Path) -> list[dict[str, Any]]:
    """Build packs until one has the KL divergence `target` on `text`; returns all."""
    tried: list[dict[str, Any]] = []
    limit = target
    while len(tried) < MOST_PACKS:
        tried.append(
            measured(folder, text, bits="auto", rank="auto", calibrate=calibration, max_kld=limit)
        )
        if far(tried[-1]["kl"], target) < KL_TOLERANCE:
            break
        limit = next_limit(tried, target)
    return tried


def next_limit(tried: list[dict[str, Any]], target: float) -> float:
    """Return the ``--max-kld`` to try next: between those on both sides, or in proportion."""
    points = sorted((math.log(one["kl"]), math.log(one["max_kld"])) for one in tried)
    kl, limits = zip(*points)
    wanted = math.log(target)
    if kl[0] < wanted < kl[-1]:
        return math.exp(float(np.interp(wanted, kl, limits)))
    nearest = min(points, key=lambda one: abs(one[0] - wanted))
    return math.exp(nearest[1] + wanted - nearest[0])


def far(kl: float, target: float) -> float:
    """How far a KL divergence is from the one that is wanted, as a share."""
    return abs(math.log(kl / target))


def measured(folder: Path, text: Path, **settings: Any) -> dict[str, Any]:
    """Build a pack; return its size, and its KL divergence on `text`."""
    path = folder / "memory.tolpack"
    built = tolpack.build(folder, path, tokenizer=folder / "tokenizer.json", force=True, **settings)
    pack = Evaluator(folder, text, tokens=KL_TOKENS).packs([path])[0]
    found = {"bytes": built.bytes, "ratio_fp16": built.ratio_fp16, "kl": pack.kl_mean_nats}
    return {**found, "kl_se": pack.kl_mean_se_nats, "max_kld": settings.get("max_kld")}


# ---- what the runs say -----------------------------------------------------------------------


def summarize(runs: list[dict[str, Any]], packs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means and standard errors over seeds for each kind, differences paired by seed."""
    by_kind = {kind: [run for run in runs if run["kind"] == kind] for kind in KINDS}
    dense = by_kind["dense"]
    levels = loss_levels(by_kind)
    summary: dict[str, Any] = {}
    for kind, own in by_kind.items():
        table = [pack for pack in packs if pack["kind"] == kind]
        summary[kind] = {
            "heldout_loss": mean_and_error(run["heldout_loss"] for run in own),
            "over_dense": mean_and_error(
                run["heldout_loss"] - other["heldout_loss"] for run, other in zip(own, dense)
            ),
            "training_flops": statistics.fmean(run["training_flops"] for run in own),
            "inference_flops_per_token": own[0]["inference_flops_per_token"],
            "seconds": statistics.fmean(run["seconds"] for run in own),
            "steps_to": {f"{level:g}": steps_over_dense(own, dense, level) for level in levels},
            "four_bits_kl": mean_and_error(pack["four"]["kl"] for pack in table),
            "auto_ratio_fp16": mean_and_error(pack["auto"]["ratio_fp16"] for pack in table),
            "auto_of_four_bits": mean_and_error(
                pack["auto"]["bytes"] / pack["four"]["bytes"] for pack in table
            ),
        }
    return summary


def loss_levels(by_kind: dict[str, list[dict[str, Any]]]) -> list[float]:
    """Return three validation losses that every run reaches: the last one is just reached."""
    worst = max(
        min(run["validation"]["validation_loss"]) for own in by_kind.values() for run in own
    )
    last = math.ceil(worst * 20) / 20
    return [last + 0.5, last + 0.25, last]


def steps_over_dense(
    own: list[dict[str, Any]], dense: list[dict[str, Any]], level: float
) -> dict[str, Any]:
    """Return the steps to a validation loss, and their ratio to dense's of the same seed."""
    steps = [steps_to(run, level) for run in own]
    ratios = [one / steps_to(run, level) for one, run in zip(steps, dense)]
    return {"steps": mean_and_error(steps), "of_dense": mean_and_error(ratios)}


def steps_to(run: dict[str, Any], level: float) -> float:
    """Return the step at which a run's validation loss first falls to `level`, interpolated."""
    steps, losses = run["validation"]["step"], run["validation"]["validation_loss"]
    after = next(number for number, loss in enumerate(losses) if loss <= level)
    if after == 0:
        return float(steps[0])
    share = (losses[after - 1] - level) / (losses[after - 1] - losses[after])
    return float(steps[after - 1] + share * (steps[after] - steps[after - 1]))


def mean_and_error(values: Iterable[float]) -> list[float]:
    """Return the mean over seeds and its standard error; nothing of nothing."""
    found = list(values)
    if not found:
        return []
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return [shortened(statistics.fmean(found)), shortened(error)]


if __name__ == "__main__":
    main()
