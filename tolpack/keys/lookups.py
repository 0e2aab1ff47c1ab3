"""Answers on one token, and on one key, from the scan of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tolpack.keys.layer_keys import LayerKeys
from tolpack.keys.scan import KEYS_PER_TOKEN, LayerScan

_NEAREST = 12
_SHOWN_USERS = 6


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What a key does for a token.

    Attributes
    ----------
    key, token : int
        Which.
    coefficient : float
        ``c_k``.
    strength : float
        ``|c_k| · ‖W_down[:, k]‖``: the norm of what the key adds to the token's row.
    """

    key: int
    token: int
    coefficient: float
    strength: float


@dataclass(frozen=True, slots=True)
class KeyTokens:
    """The tokens of a key.

    Attributes
    ----------
    layer, key : int
        Which.
    kurtosis, rms_strength : float
        See `tolpack.keys.scan.LayerScan`.
    used_by : int
        In how many tokens it is one of the strongest keys.
    tokens : tuple of KeyUse
        Its strongest tokens, strongest first.
    """

    layer: int
    key: int
    kurtosis: float
    rms_strength: float
    used_by: int
    tokens: tuple[KeyUse, ...]


@dataclass(frozen=True, slots=True)
class TokenKeys:
    """The keys of a token.

    Attributes
    ----------
    layer, token : int
        Which.
    nearest : tuple of (int, float)
        The tokens of most similar coefficients, and the cosines.
    keys : tuple of KeyUse
        Its strongest keys, strongest first.
    share : float
        Part of the sum of all strengths that these keys have.
    other_tokens : tuple of tuple of int
        For each of them, other tokens with a large coefficient of the same sign, largest first.
    """

    layer: int
    token: int
    nearest: tuple[tuple[int, float], ...]
    keys: tuple[KeyUse, ...]
    share: float
    other_tokens: tuple[tuple[int, ...], ...]


def look_up_key(keys: LayerKeys, scan: LayerScan, key: int) -> KeyTokens:
    """Return the tokens of a key."""
    tokens = scan.key_tokens[key]
    coefficients = keys.coefficients(tokens)[:, key].float().tolist()
    uses = zip(tokens.tolist(), coefficients, np.abs(scan.key_strengths[key]).tolist())
    return KeyTokens(
        keys.layer, key, float(scan.kurtosis[key]), float(scan.rms_strengths[key]),
        int((scan.token_keys == key).sum()),
        tuple(KeyUse(key, token, c, strength) for token, c, strength in uses),
    )  # fmt: skip


def look_up_token(keys: LayerKeys, scan: LayerScan, column: int, token: int) -> TokenKeys:
    """Return the keys of a token; `column` is its number among those that the scan asked for."""
    cosines = scan.similarities[:, column].copy()
    cosines[token] = -2.0
    nearest = np.argsort(-cosines, kind="stable")[: min(_NEAREST, len(cosines) - 1)]
    c = keys.coefficients(np.array([token]))[0].float().numpy()
    strengths = np.abs(c) * keys.value_norms().numpy()
    strongest = np.argsort(-strengths, kind="stable")[:KEYS_PER_TOKEN]
    total = float(strengths.sum())
    others = [_same_sign(scan, int(k), float(c[k]), token) for k in strongest]
    return TokenKeys(
        keys.layer, token,
        tuple((int(t), float(cosines[t])) for t in nearest),
        tuple(KeyUse(int(k), token, float(c[k]), float(strengths[k])) for k in strongest),
        float(strengths[strongest].sum()) / total if total else 0.0,
        tuple(tuple(one[:_SHOWN_USERS]) for one in others),
    )  # fmt: skip


def _same_sign(scan: LayerScan, key: int, coefficient: float, token: int) -> list[int]:
    """Return the strongest other tokens to which a key adds its value with the same sign."""
    same = np.sign(scan.key_strengths[key]) == np.sign(coefficient)
    return [other for other in scan.key_tokens[key][same].tolist() if other != token]
