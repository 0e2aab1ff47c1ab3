r"""Test whether similar tokens use similar keys, layer by layer, against controls.

The script has sets of words that mean something similar (numbers, kin, motion, …), and keeps those
that are one token of the tokenizer. For each such token it takes the ten tokens whose key
coefficients have the largest cosine with its own, and counts how many are of its set. It does the
same for random keys (see `LayerKeys.randomized`), and for the embeddings, which all layers read.
Chance is a set's size over the vocabulary.

It also says for which tokens outlier keys are: the median count in a text of the strongest token of
an outlier key, and of the other keys.

    python benchmarks/keys_claim.py data/memoryllm-11m.pt --tokenizer data/tokenizer.json \
        --frequencies data/token-counts.npy --json benchmarks/results/keys_claim.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import described
from numpy.typing import NDArray

from tolpack.keys.layer_keys import LayerKeys, load_layer_keys
from tolpack.keys.outliers import find_outliers
from tolpack.keys.scan import cosines, scan_layer
from tolpack.model.text import TextTokenizer
from tolpack.sources.checkpoint.checkpoint import open_checkpoint

NEAREST = 10
SETS = {
    "numbers": "one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen eighteen twenty thirty forty fifty sixty hundred thousand",
    "kin": "father mother brother sister son daughter wife husband uncle aunt cousin nephew niece "
    "brothers sisters sons parents children grandfather",
    "motion": "went go goes going came come walked walk ran run rode ride passed entered returned "
    "followed crossed hastened approached proceeded advanced",
    "speech": "said says cried replied answered asked exclaimed whispered shouted murmured spoke "
    "repeated remarked added observed inquired",
    "body": "hand hands head face eyes arm arms feet foot knees heart breast hair lips mouth neck "
    "shoulder shoulders fingers legs nose ear ears",
    "places": "London Paris Rome Moscow Petersburg England France Italy Russia Spain Germany "
    "Constantinople Europe Asia Africa America Egypt Greece",
    "time": "day days night morning evening week month months year years hour hours minute minutes "
    "afternoon today tomorrow yesterday",
    "colours": "red blue green white black yellow grey brown golden pale dark purple scarlet",
    "prepositions": "of to in for with by from at on upon into through against between among under "
    "over before after without within",
    "war": "army armies soldiers enemy battle war victory troops regiment cavalry officers general "
    "camp siege artillery infantry",
}


def main() -> None:
    """Print a table of the layers, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--frequencies", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.checkpoint)
    ids = np.arange(checkpoint.config.vocab_size)
    counts = np.load(args.frequencies)
    sets = word_sets(args.tokenizer, len(ids))
    embeddings = checkpoint.tensor("embed_tokens.weight").float()
    by_embedding, by_chance = in_set(embeddings, sets), chance(sets, len(ids))
    print(f"embeddings {by_embedding['all']:.1%}; chance {by_chance:.1%}")
    print(f"{'':10}{'keys':>8}{'random':>8}   {'outliers':>9}{'others':>8}   by set")
    layers = []
    for layer in range(checkpoint.config.num_hidden_layers):
        keys = load_layer_keys(checkpoint, layer)
        found = measure(keys, ids, sets, counts)
        layers.append(found)
        by_set = " ".join(f"{name} {100 * share:.0f}" for name, share in found["keys"].items())
        print(
            f"layer {layer:<4}{found['keys']['all']:8.1%}{found['random_keys']['all']:8.1%}   "
            f"{found['outlier_count']:9.0f}{found['other_count']:8.0f}   {by_set}"
        )
    result = {
        "sets": {name: len(tokens) for name, tokens in sets.items()},
        "chance": by_chance,
        "embeddings": by_embedding,
        "layers": layers,
        **described("torch", "scikit-learn"),
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def word_sets(tokenizer: Path, vocab_size: int) -> dict[str, NDArray[np.int64]]:
    """Return the token ids of each set: of its words, behind a space, those that are one token."""
    texts = TextTokenizer(tokenizer).texts(range(vocab_size))
    number = {text: token for token, text in enumerate(texts)}
    return {
        name: np.array([number[f" {word}"] for word in words.split() if f" {word}" in number])
        for name, words in SETS.items()
    }


def measure(
    keys: LayerKeys, ids: NDArray[np.int64], sets: dict[str, NDArray[np.int64]],
    counts: NDArray[np.int64],
) -> dict[str, Any]:  # fmt: skip
    """Return the shares of a layer and of random keys, and the counts of outliers' tokens."""
    coefficients = keys.coefficients(ids)
    scan = scan_layer(keys, len(ids), coefficients[:1024], np.empty(0, np.int64))
    strongest = counts[scan.key_tokens[:, 0]]
    outlier = np.zeros(keys.count, bool)
    outlier[find_outliers(scan.kurtosis)] = True
    return {
        "keys": in_set(coefficients, sets),
        "random_keys": in_set(keys.randomized(0).coefficients(ids), sets),
        "outlier_count": float(np.median(strongest[outlier])),
        "other_count": float(np.median(strongest[~outlier])),
    }


def in_set(rows: torch.Tensor, sets: dict[str, NDArray[np.int64]]) -> dict[str, float]:
    """Return the share of a token's nearest tokens that are of its set: of all sets, and by set."""
    similar = cosines(rows)
    np.fill_diagonal(similar, -2)
    shares, found = {}, []
    for name, tokens in sets.items():
        nearest = np.argpartition(-similar[tokens], NEAREST, axis=1)[:, :NEAREST]
        inside = np.isin(nearest, tokens).mean(axis=1)
        shares[name] = float(inside.mean())
        found.append(inside)
    return {"all": float(np.concatenate(found).mean()), **shares}


def chance(sets: dict[str, NDArray[np.int64]], vocab_size: int) -> float:
    """Return the share that random neighbours would have."""
    sizes = np.array([len(tokens) for tokens in sets.values()])
    return float((sizes * (sizes - 1)).sum() / sizes.sum() / (vocab_size - 1))


if __name__ == "__main__":
    main()
