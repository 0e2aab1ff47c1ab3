"""Slow hashes of n-grams, in unbounded integers: what the fast ones must equal."""

import re
import unicodedata

import numpy as np


def slow_rows(ngrams, ids):
    """Rows of a text, one n-gram at a time, in unbounded integers."""
    if ngrams.compressed_ids is not None:
        ids = [int(ngrams.compressed_ids[token]) for token in ids]
    return [
        [slow_row(ngrams, head, list(reversed(ids[: t + 1]))) for head in range(ngrams.heads)]
        for t in range(len(ids))
    ]


def slow_row(ngrams, head, backwards):
    """Row of the n-gram at the start of `backwards`, the text from its last token back."""
    gram = backwards[:1]
    for token in backwards[1:]:
        if token == ngrams.boundary:
            break
        gram.append(token)
    order = ngrams.orders[head]
    gram = (gram + [ngrams.pad] * order)[:order]
    products = [token * factor for token, factor in zip(gram, ngrams.multipliers)]
    mixed = 0
    for product in products:
        mixed = mixed ^ product if ngrams.mixing == "xor" else mixed + product
    if ngrams.mixing == "xor":
        mixed = (mixed + 2**63) % 2**64 - 2**63
    return ngrams.offsets[head] + mixed % ngrams.sizes[head]


def slow_engram(layers, layer, bases, heads, compressed, pad, seed, text):
    """Rows of Engram's demo for one layer, one head after the other."""
    used, sizes = set(), {}
    for each in layers:
        for order, base in enumerate(bases, 2):
            for head in range(heads):
                size = base
                while size in used or any(size % d == 0 for d in range(2, int(size**0.5) + 1)):
                    size += 1
                used.add(size)
                sizes[each, order, head] = size
    half = (2**63 - 1) // len(set(compressed)) // 2
    drawn = np.random.default_rng(seed + 10007 * layer).integers(0, half, len(bases) + 1)
    multipliers = [int(number) * 2 + 1 for number in drawn]
    padded = [compressed[pad]] * len(bases) + [compressed[token] for token in text]
    rows = []
    for t in range(len(bases), len(padded)):
        row, offset = [], 0
        for order in range(2, len(bases) + 2):
            mixed = 0
            for k in range(order):
                mixed ^= padded[t - k] * multipliers[k]
            for head in range(heads):
                row.append(mixed % sizes[layer, order, head] + offset)
                offset += sizes[layer, order, head]
        rows.append(row)
    return rows


def slow_longcat(vocab, ratio, highest, splits, eos, text):
    """Rows of LongCat-Flash-Lite within each of its tables, from the numbers that n-grams spell."""
    rows = []
    for t in range(len(text)):
        row = []
        for order in range(2, highest + 1):
            number = text[t]
            for k in range(1, order):
                if t - k < 0 or eos in text[t - k : t]:
                    break
                number += text[t - k] * vocab**k
            row += [
                number % (ratio * vocab + 2 * ((order - 2) * splits + split) + 1)
                for split in range(splits)
            ]
        rows.append(row)
    return rows


def slow_key(text):
    """What a text is compared by, from Python's own tables of characters."""
    if "\ufffd" in text:
        return text
    spread = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    plain = "".join(c for c in spread if unicodedata.category(c) != "Mn")
    lower = re.sub(r"[ \t\r\n]+", " ", "".join(c.lower() for c in plain))
    return (" " if lower == " " else lower.strip().replace("\ue000", " ")) or text


def slow_compressed_ids(texts):
    """Compressed ids of tokens with these texts."""
    keys = [slow_key(text) for text in texts]
    seen = list(dict.fromkeys(keys))
    return [seen.index(key) for key in keys]


def save_tokenizer(folder, tokens, decoder=None):
    """Write a tokenizer whose tokens are these, and return its path."""
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({text: n for n, text in enumerate(tokens)}, tokens[0]))
    if decoder is not None:
        tokenizer.decoder = decoder
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path
