r"""Whether chosen next tokens can be suppressed by editing rows of a MemoryLLM's table.

python benchmarks/suppress_tokens.py memoryllm-11m.pt --calibrate calibration.txt \
    --text heldout.txt --tokenizer tokenizer.json --pack auto.tolpack \
    --json benchmarks/results/suppress_tokens.json --plot docs/suppress-tokens.png

Three sets of words shall come less often: names, numbers, and words of war and death. The edited
tokens are those after which the calibration text gives a set most probability. Keys, rows and
amounts are chosen on every second window of the calibration text. Probabilities and perplexity are
measured on the other windows, and on the held-out text. All edits are made by `edit_pack` and read
through ``tolpack.open(pack, edits=[…])``.

* *solved rows*: rows of the last layer by least squares in `--steps` steps
  (`tolpack.edits.suppressing_rows`), so strong that the targets become `--fall` times less probable
  at windows that did not serve; every step is measured;
* *zero rows*: the rows of the same tokens are zeros;
* *keys*: rows of the same tokens less 64 keys, chosen by logit lens, by gradients, by
  `--suppress-like` the targets (8 a layer), or at random.

*Elsewhere* are positions whose next token is not a target. Standard errors are paired by window.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import described
from numpy.typing import NDArray
from suppress_plot import plot
from suppression_keys import Keys, TextKeys, random_keys

import tolpack
from tolpack.edits.edit_pack import edit_pack
from tolpack.edits.open_changes import suppress_chosen, suppress_like
from tolpack.edits.row_changes import RowChange, zero_rows
from tolpack.edits.suppressing_rows import SuppressingRows, suppress_in_steps
from tolpack.keys.layer_keys import load_layer_keys
from tolpack.keys.named_tokens import find_tokens
from tolpack.model.decoder import Decoder
from tolpack.model.perplexity import ratio_se
from tolpack.model.text import TextTokenizer, read_token_ids
from tolpack.sources.checkpoint.checkpoint import Checkpoint, open_checkpoint

SETS = {
    "names": "Casaubon Dorothea Lydgate Fred Brooke Vincy Rosamond Garth Celia Bulstrode "
    "Featherstone Cadwallader Ladislaw Farebrother Lowick Caleb Chet Mary",
    "numbers": "two three four five six seven eight nine ten eleven twelve fifteen twenty thirty "
    "forty fifty hundred thousand",
    "words": "death dead die died dying kill killed murder blood bloody war battle fight gun sword "
    "shot wound wounded attack enemy corpse fire cannon knife",
    "three words": "death blood war",
}
FEW = "three words"  # only solved rows
CONTEXT, KEYS = 256, 64
LIKENESS = (0, 400, 1600, 1 << 30)  # places between which the cost elsewhere is split
SOLVED = 7  # windows of ten that serve to solve
SETTINGS = (
    "windows",
    "choosing",
    "gradient_windows",
    "tokens",
    "fall",
    "steps",
    "seeds",
    "threads",
)
BATCH, BLOCK = 8, 512  # windows fed, positions whose logits are held
Doubles = NDArray[np.float64]


@dataclass
class Losses:
    """A text under one table: (windows, length) of next-token losses, and of each set's mass."""

    nll: Doubles
    mass: dict[str, Doubles]


@dataclass
class Experiment:
    """The model, its texts in windows, and the tokens of each set."""

    checkpoint: Checkpoint
    decoder: Decoder
    targets: dict[str, torch.Tensor]
    likeness: dict[str, Any]  # each token's place in the order of `by_likeness`
    choosing: torch.Tensor
    texts: dict[str, torch.Tensor]
    settings: argparse.Namespace
    base: dict[str, dict[str, Losses]] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)

    def losses(self, rows: torch.Tensor, windows: torch.Tensor) -> Losses:
        """Run the model with `rows` (layers, vocab, hidden)."""
        found = [self._losses(rows, one) for one in torch.split(windows, BATCH)]
        nll = torch.cat([one for one, _ in found])
        mass = {name: torch.cat([one[name] for _, one in found]).double().numpy()
                for name in self.targets}  # fmt: skip
        return Losses(nll.double().numpy(), mass)

    @torch.inference_mode()
    def _losses(
        self, rows: torch.Tensor, windows: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        fed, following = windows[:, :-1], windows[:, 1:]
        states = self.decoder.norm(
            self.decoder.states(fed, None, lambda layer, ids: rows[layer][ids])
        ).flatten(0, 1)
        nll, mass = [], {name: list[torch.Tensor]() for name in self.targets}
        for block, ids in zip(torch.split(states, BLOCK), torch.split(following.flatten(), BLOCK)):
            logits = self.decoder.head.logits(block)
            normalizer = torch.logsumexp(logits, -1, keepdim=True)
            nll.append(normalizer[:, 0] - logits.gather(1, ids[:, None])[:, 0])
            for name, targets in self.targets.items():
                mass[name].append((logits[:, targets] - normalizer).exp().sum(1))
        joined = {name: torch.cat(one).view(fed.shape) for name, one in mass.items()}
        return torch.cat(nll).view(fed.shape), joined


def windows_of(path: Path, tokenizer: Path, vocab_size: int) -> torch.Tensor:
    """Cut a text into windows, each with the token after it: (windows, CONTEXT + 1)."""
    ids = torch.from_numpy(read_token_ids(path, vocab_size, tokenizer))
    starts = torch.arange(0, len(ids) - CONTEXT, CONTEXT)
    return torch.stack([ids[start : start + CONTEXT + 1] for start in starts.tolist()])


def spread(windows: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` of the windows, from all over the text; all, if there are fewer."""
    places = np.linspace(0, len(windows) - 1, min(count, len(windows)))
    return windows[torch.from_numpy(places.astype(np.int64))]


def table_of(pack: tolpack.Pack) -> torch.Tensor:
    """Return all rows of a pack: (layers, vocab, hidden)."""
    rows = pack.rows(np.arange(pack.vocab_size))
    return torch.from_numpy(rows).transpose(0, 1).contiguous()


def compare(
    now: Losses, base: Losses, following: Any, name: str, targets: Any, likeness: Any
) -> dict[str, Any]:
    """Return how much less likely the targets of a set are, and perplexity elsewhere.

    `likeness` has each token's place in the order of `by_likeness`. An exact bias would divide the
    targets' probabilities by the same factor at each position, and give the others what is left.
    """
    hit = np.isin(following, targets)
    before, after = (np.where(hit, np.exp(-one.nll), 0).sum(1) for one in (base, now))
    spread = after / after.sum() - before / before.sum() if before.sum() > 0 else after
    moved = np.where(hit, 0, now.nll - base.nll).sum(1)
    counts = (~hit).sum(1)
    increase = np.exp(moved.sum() / counts.sum())
    left = after.sum() / before.sum() if hit.any() else now.mass[name].sum() / base.mass[name].sum()
    bias = np.log1p(-np.minimum(1 - left, 1) * base.mass[name])[~hit].mean()
    ranks, shift = likeness[following], np.where(hit, 0, now.nll - base.nll)
    shares = {
        f"{low} to {high - 1}": float(100 * shift[(ranks >= low) & (ranks < high)].sum()
                                      / counts.sum())
        for low, high in itertools.pairwise(LIKENESS)
    }  # fmt: skip
    return {
        "targets": int(hit.sum()),
        "probability_before": float(before.sum() / max(1, hit.sum())),
        "probability_after": float(after.sum() / max(1, hit.sum())),
        "times_less": float(before.sum() / after.sum()) if hit.any() else None,
        "times_less_relative_se": float(np.sqrt(np.square(spread).sum())),
        "times_less_geometric": float(np.exp((now.nll - base.nll)[hit].mean())) if hit.any()
        else None,
        "mass_before": float(base.mass[name].mean()),
        "mass_after": float(now.mass[name].mean()),
        "mass_times_less": float(base.mass[name].mean() / now.mass[name].mean()),
        "ppl_elsewhere_pct": float(100 * (increase - 1)),
        "ppl_elsewhere_se_pct": float(100 * increase * (ratio_se(moved, counts) or 0.0)),
        "ppl_elsewhere_of_exact_bias_pct": float(100 * np.expm1(bias)),
        "points_elsewhere_by_likeness": shares,
    }  # fmt: skip


class Measurement:
    """Edits of one pack: made, opened and measured."""

    def __init__(self, run: Experiment, pack: Path, label: str, folder: Path) -> None:
        self.run, self.path, self.label, self.folder = run, pack, label, folder
        with tolpack.open(pack) as opened:
            rows = table_of(opened)
        self.base = {text: run.losses(rows, windows) for text, windows in run.texts.items()}
        self.nbytes = pack.stat().st_size

    def edit(self, sets: list[str], way: str, ids: Any, change: RowChange, **more: Any) -> None:
        """Write edits, open the pack with them, and add a point for each of `sets`."""
        started = time.perf_counter()
        with tolpack.open(self.path) as pack:
            made = edit_pack(pack, self.folder / "e.edits", ids, change, force=True)
        with tolpack.open(self.path, edits=[made.path]) as pack:
            rows = table_of(pack)
        for text, windows in self.run.texts.items():
            now, base = self.run.losses(rows, windows), self.base[text]
            for name in sets:
                targets = self.run.targets[name]
                likeness = self.run.likeness[name]
                found = compare(now, base, windows[:, 1:].numpy(), name, targets, likeness)
                self.run.points.append(
                    {"set": name, "way": way, "pack": self.label, "text": text, **more,
                     "tokens": len(made.token_ids), "bytes": made.nbytes, **found}
                )  # fmt: skip
                print(shown(self.run.points[-1]), flush=True)
        print(f"  {time.perf_counter() - started:.0f} s", flush=True)


def shown(point: dict[str, Any]) -> str:
    """Write a point in one line."""
    factor = point["times_less"]
    less = "no target" if factor is None else f"{factor:6.2f} times less"
    return (
        f"{point['set']:12} {point['way']:22} {point['pack']:6} {point['text']:12} {less}, mass "
        f"{point['mass_times_less']:6.2f}, elsewhere {point['ppl_elsewhere_pct']:+.3f} ± "
        f"{point['ppl_elsewhere_se_pct']:.3f} %, {point['tokens']} tokens, {point['bytes']:,} B"
    )


def head_directions(decoder: Decoder) -> torch.Tensor:
    """Return the head's row of each token, centred and of norm 1: (vocab, hidden)."""
    head = next(iter(decoder.head.blocks()))[1] * decoder.norm.weight
    return torch.nn.functional.normalize(head - head.mean(0), dim=1)


def by_likeness(decoder: Decoder, targets: torch.Tensor) -> Any:
    """Return the place of each token among all that are not targets, most like a target first:
    int64 (vocab,), by the largest cosine of their rows of the head; targets stand last.
    """
    rows = head_directions(decoder)
    likeness = (rows @ rows[targets].T).max(1).values
    likeness[targets] = -2
    return likeness.argsort(descending=True).argsort().numpy()


def mean_cosine(decoder: Decoder, targets: torch.Tensor) -> float:
    """Return how alike targets are: the mean cosine between their rows of the head, centred."""
    rows = head_directions(decoder)[targets]
    count = len(targets)
    return float(((rows @ rows.T).sum() - count) / (count * (count - 1)))


def solve_rows(run: Experiment) -> dict[str, dict[float, SuppressingRows]]:
    """Return for each set the rows of every step, by the fall that it is for."""
    serves = torch.arange(len(run.choosing)) % 10 < SOLVED
    windows, left = run.choosing[serves, :-1], run.choosing[~serves]
    fall, steps, found = run.settings.fall, run.settings.steps, {}
    for name, targets in run.targets.items():
        started = time.perf_counter()
        solved = suppress_in_steps(
            run.decoder, windows, left, targets.numpy(), run.settings.tokens, fall=fall, steps=steps
        )
        found[name] = {
            round(fall ** (n / steps), 2): rows for n, rows in enumerate(solved, start=1)
        }
        print(f"{name}: solved in {time.perf_counter() - started:.0f} s", flush=True)
    return found


def key_ways(run: Experiment, pack: Path) -> Iterator[tuple[str, str, Callable[..., RowChange]]]:
    """Yield (set, way, the change of a pack's rows) for every way to choose keys."""
    layers = [load_layer_keys(run.checkpoint, n) for n in range(len(run.decoder.widths))]
    with tolpack.open(pack) as opened:
        keys = TextKeys(run.decoder, layers, table_of(opened))
    named = {name: targets for name, targets in run.targets.items() if name != FEW}
    hits = sum(torch.isin(run.choosing[:, 1:], one).sum(1) for one in named.values())
    busiest = run.choosing[
        torch.as_tensor(hits).argsort(descending=True)[: run.settings.gradient_windows]
    ]
    by_gradient = keys.by_gradient(busiest, named, KEYS)
    for name, targets in named.items():
        lens = keys.by_lens(run.choosing, targets, KEYS)
        yield name, "keys by logit lens", chosen(run.checkpoint, lens)
        yield name, "keys by gradient", chosen(run.checkpoint, by_gradient[name])
        yield name, "keys like the targets", like(run.checkpoint, targets, len(layers))
    for seed in range(run.settings.seeds):
        some = random_keys(len(layers), layers[0].count, KEYS, seed)
        yield "", f"random keys, seed {seed}", chosen(run.checkpoint, some)


def chosen(checkpoint: Checkpoint, keys: Keys) -> Callable[[tolpack.Pack], RowChange]:
    """Return what makes the change without given keys."""
    return lambda pack: suppress_chosen(checkpoint, pack, keys).change


def like(
    checkpoint: Checkpoint, targets: torch.Tensor, layers: int
) -> Callable[[tolpack.Pack], RowChange]:
    """Return what makes the change without keys like those of the targets."""
    ids, count = targets.numpy(), KEYS // layers
    return lambda pack: suppress_like(checkpoint, pack, ids, count).change


def main() -> None:
    """Run the experiment."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    started, run = time.perf_counter(), _open(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exact = folder / "exact.tolpack"
        tolpack.build(arguments.checkpoint, exact, bits="lossless")
        measured = Measurement(run, exact, "exact", folder)
        solved = solve_rows(run)
        last = {name: steps[max(steps)] for name, steps in solved.items()}
        everyone = np.unique(np.concatenate([one.token_ids for one in last.values()]))
        for target_set, steps in solved.items():
            for fall, rows in steps.items():
                measured.edit([target_set], "solved rows", rows.token_ids, rows.change, fall=fall)
            if target_set != FEW and not arguments.solved_only:
                measured.edit([target_set], "zero rows", rows.token_ids, zero_rows())
        with tolpack.open(exact) as pack:
            ways = [] if arguments.solved_only else key_ways(run, exact)
            for target_set, way, make in ways:
                sets = [target_set] if target_set else [one for one in run.targets if one != FEW]
                ids = last[target_set].token_ids if target_set else everyone
                measured.edit(sets, way, ids, make(pack))
        for path in arguments.pack:
            other = Measurement(run, path, path.name, folder)
            for target_set, rows in last.items():
                other.edit(
                    [target_set], "solved rows", rows.token_ids, rows.change, fall=arguments.fall
                )
    result = _result(run, arguments, time.perf_counter() - started)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.plot is not None:
        plot(result, arguments.plot)


def _open(arguments: argparse.Namespace) -> Experiment:
    checkpoint = open_checkpoint(arguments.checkpoint)
    decoder, tokenizer = Decoder(checkpoint), TextTokenizer(arguments.tokenizer)
    targets = {}
    for name in arguments.sets:
        words = [f" {word}" for word in SETS[name].split()]
        targets[name] = torch.from_numpy(find_tokens(words, tokenizer, decoder.vocab_size))
    texts = [windows_of(path, arguments.tokenizer, decoder.vocab_size)
             for path in (arguments.calibrate, arguments.text)]  # fmt: skip
    judged = {"calibration": spread(texts[0][1::2], arguments.windows),
              "held-out": spread(texts[1], arguments.windows)}  # fmt: skip
    return Experiment(
        checkpoint, decoder, targets,
        {name: by_likeness(decoder, one) for name, one in targets.items()},
        spread(texts[0][::2], arguments.choosing), judged, arguments,
    )  # fmt: skip


def _result(run: Experiment, arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    return {
        **described("torch", "numpy"),
        "checkpoint": arguments.checkpoint.name,
        "settings": {name: getattr(arguments, name) for name in SETTINGS},
        "texts": {name: int(one[:, 1:].numel()) for name, one in run.texts.items()},
        "sets": {name: SETS[name] for name in run.targets},
        "mean_cosine": {name: mean_cosine(run.decoder, one) for name, one in run.targets.items()},
        "packs": {path.name: path.stat().st_size for path in arguments.pack},
        "seconds": round(seconds),
        "points": run.points,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--calibrate", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--pack", type=Path, action="append", default=[],
                        help="edit this pack too, by solved rows; repeatable")  # fmt: skip
    parser.add_argument("--windows", type=int, default=300, help="windows judged of each text")
    parser.add_argument("--choosing", type=int, default=729, help="windows that serve to choose")
    parser.add_argument("--gradient-windows", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=1000, help="tokens to edit")
    parser.add_argument("--fall", type=float, default=16, help="times less probable, at last")
    parser.add_argument("--steps", type=int, default=4, help="steps of solved rows")
    parser.add_argument("--seeds", type=int, default=3, help="draws of random keys")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--solved-only", action="store_true", help="no zeros and no keys")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
