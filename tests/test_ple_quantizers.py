"""The quantizers that benchmarks compare packs with."""

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
pytest.importorskip("scipy")

from table_quantizers import (  # noqa: E402
    LLOYD_MAX_2BIT,
    NF4,
    ggml,
    hadamard_2bit,
    hadamard_codebooks,
    k_quant_scales,
    nf4,
    q2_k,
    q4_k,
    q4_k_scales,
    rotated,
)


@pytest.fixture(scope="module")
def table():
    """Return rows of a normal distribution; one row is zero, one is constant."""
    values = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32) * 0.3
    values[3], values[4] = 0, 0.25
    return values


def relative_error(values, table):
    return float(np.linalg.norm(values - table) / np.linalg.norm(table))


def test_q4_0_is_that_of_the_package(table):
    """Q4_0 takes 4.5 bits and rounds each block to sixteen multiples of ``extreme / -8``."""
    values, bits = ggml(table, "Q4_0")
    assert bits == 4.5
    for block, stored in zip(table.reshape(-1, 32), values.reshape(-1, 32)):
        step = np.float32(np.float16(block[np.abs(block).argmax()] / -8))
        allowed = step * np.arange(-8, 8)
        inverse = -8 / block[np.abs(block).argmax()] if step else 0
        codes = np.clip(np.floor(block * inverse + 8.5), 0, 15).astype(int)
        assert np.allclose(stored, allowed[codes], atol=1e-7)


def test_q4_k_reads_as_its_scales_say(table):
    """The package reads from the bytes the 6-bit scales and the 4-bit codes put into them."""
    codes = q4_k(table)
    assert codes.shape == (64, 288)
    values, bits = ggml(table, "Q4_K")
    assert bits == 4.5
    for block, stored in zip(table.reshape(-1, 8, 32), values.reshape(-1, 8, 32)):
        scale, minimum = (part[0] for part in q4_k_scales(block[None]))
        steps = [np.float32(np.float16(part.max() / 63)) for part in (scale, minimum)]
        for number, row in enumerate(block):
            s = steps[0] * np.rint(63 * scale[number] / (scale.max() or 1))
            m = steps[1] * np.rint(63 * minimum[number] / (minimum.max() or 1))
            wanted = s * np.clip(np.rint((row + m) / s), 0, 15) - m if s else 0 * row - m
            assert np.allclose(stored[number], wanted, atol=1e-5)


def test_q4_k_is_closer_than_q4_0(table):
    """At equal bits the search for scales and minima pays."""
    q4_0 = relative_error(ggml(table, "Q4_0")[0], table)
    assert relative_error(ggml(table, "Q4_K")[0], table) < 0.9 * q4_0


def test_q4_k_scales_are_the_best_of_the_candidates():
    """No candidate of a plain search over one sub-block has a smaller weighted error."""
    x = np.random.default_rng(1).standard_normal(32).astype(np.float32)
    weight = np.sqrt(np.mean(x * x)) + np.abs(x)
    low, span = min(x.min(), 0), x.max() - min(x.min(), 0)
    errors = []
    for levels in 14 + 0.1 * np.arange(21):
        codes = np.clip(np.rint((x - low) * levels / span), 0, 15)
        root = np.sqrt(weight)
        line = np.linalg.lstsq(np.stack([codes, np.ones(32)], 1) * root[:, None], x * root)[0]
        errors.append((weight * (line[0] * codes + line[1] - x) ** 2).sum())
    scale, minimum = (part[0, 0] for part in q4_k_scales(x.reshape(1, 1, 32)))
    codes = np.clip(np.rint((x + minimum) / scale), 0, 15)
    assert (weight * (scale * codes - minimum - x) ** 2).sum() <= min(errors) * 1.0001


def test_q2_k_reads_as_its_scales_say(table):
    """The package reads from the bytes the 4-bit scales and the 2-bit codes put into them."""
    codes = q2_k(table)
    assert codes.shape == (64, 168)
    values, bits = ggml(table, "Q2_K")
    assert bits == 2.625
    for block, stored in zip(table.reshape(-1, 16, 16), values.reshape(-1, 16, 16)):
        found = k_quant_scales(block[None], np.abs(block[None]), 3, 2.5 + 0.1 * np.arange(16), 1)
        scale, minimum = (part[0] for part in found)
        steps = [np.float32(np.float16(part.max() / 15)) for part in (scale, minimum)]
        for number, row in enumerate(block):
            s = steps[0] * np.rint(15 * scale[number] / (scale.max() or 1))
            m = steps[1] * np.rint(15 * minimum[number] / (minimum.max() or 1))
            wanted = s * np.clip(np.rint((row + m) / s), 0, 3) - m if s else 0 * row - m
            assert np.allclose(stored[number], wanted, atol=1e-5)


def test_q2_k_loses_what_two_bits_and_fine_scales_lose(table):
    """Its error is near that of four levels of a Gaussian, and far above that of 4.5 bits."""
    q2_k_error = relative_error(ggml(table, "Q2_K")[0], table)
    assert 2 * relative_error(ggml(table, "Q4_K")[0], table) < q2_k_error < 0.36


def test_nf4_takes_the_nearest_level(table):
    """Every value becomes the nearest of sixteen levels times its block's largest value."""
    stored = nf4(table)
    for block, values in zip(table.reshape(-1, 64), stored.reshape(-1, 64)):
        scale = np.abs(values).max() or 1
        distance = np.abs(block[:, None] / scale - NF4)
        assert np.allclose(np.abs(block - values) / scale, distance.min(axis=1), atol=1e-6)


def test_rotation_is_orthogonal_and_its_own_inverse(table):
    """Norms stay, and rotating twice gives the values back."""
    groups = table.reshape(-1, 128)
    turned = rotated(groups)
    assert np.allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(groups, axis=1), rtol=1e-5)
    assert np.allclose(rotated(turned), groups, atol=1e-6)


def test_two_bits_lose_what_a_gaussian_loses(table):
    """The error is that of the four best levels of a Gaussian: 0.1175 of the variance."""
    rows = table[8:]
    values, bits = hadamard_2bit(rows)
    assert bits == 2.125
    assert relative_error(values, rows) ** 2 == pytest.approx(0.1175, abs=0.004)
    grid = np.random.default_rng(2).standard_normal(200_000)
    loss = np.square(grid[:, None] - LLOYD_MAX_2BIT).min(axis=1).mean()
    assert loss == pytest.approx(0.1175, abs=0.002)


def test_codebooks_of_a_group_are_closer_and_larger(table):
    """Four levels for each group lose less than one scale, and take 2.5 bits."""
    rows = table[8:]
    values, bits = hadamard_codebooks(rows)
    assert bits == 2.5
    assert relative_error(values, rows) < relative_error(hadamard_2bit(rows)[0], rows)


def test_zero_rows_stay_zero(table):
    """No quantizer makes anything of nothing."""
    for values in (nf4(table), ggml(table, "Q4_K")[0], ggml(table, "Q2_K")[0],
                   hadamard_2bit(table)[0], hadamard_codebooks(table)[0]):  # fmt: skip
        assert not values[3].any()
