"""The bitshift trellis and the entropy-coded water-filling that benchmarks compare packs with."""

import itertools

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("scipy")

from bitshift_trellis import bitshift_trellis, one_mad, trellis_states
from table_quantizers import hadamard_2bit
from water_filling import WaterFilling

# Mean squared error of the best scalar quantizer of a standard normal distribution (Max 1960), and
# the least of all quantizers, 4^-bits.
LLOYD_MAX, GAUSSIAN = {1: 0.3634, 2: 0.1175}, {1: 0.25, 2: 0.0625}


@pytest.fixture(scope="module")
def table():
    """Return rows of a normal distribution; one row is zero."""
    values = np.random.default_rng(0).standard_normal((16, 512)).astype(np.float32) * 0.3
    values[3] = 0
    return values


def squared_error(values, table):
    return float(np.square(values - table).sum() / np.square(table).sum())


# ---- trellis ---------------------------------------------------------------------------------


def test_code_of_a_state_is_the_sum_of_four_bytes():
    """1MAD adds the bytes of ``34038481 s + 76625530``; over all states it is like a Gaussian."""
    code = one_mad(12)
    sums = np.array([sum(((34038481 * s + 76625530) % 2**32).to_bytes(4)) for s in range(4096)])
    assert np.allclose(code, (sums - sums.mean()) / sums.std(), atol=1e-6)
    assert np.mean(code**4) == pytest.approx(3, abs=0.35)


@pytest.mark.parametrize("bits", [1, 2])
def test_search_finds_the_best_path(bits):
    """No first state and no new bits lead to a smaller error: all of them are tried."""
    code = one_mad(4)
    targets = np.random.default_rng(bits).standard_normal((3, 5)).astype(np.float32)
    states = trellis_states(targets, code, bits)
    for row, found in zip(targets, states):
        errors = []
        for first in range(16):
            for new in itertools.product(range(1 << bits), repeat=4):
                path = [first]
                for one in new:
                    path.append(path[-1] >> bits | one << (4 - bits))
                errors.append(np.square(row - code[path]).sum())
        assert np.square(row - code[found]).sum() == pytest.approx(min(errors), rel=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_rows_decode_from_the_bits_that_are_counted(table, bits):
    """A row's first state and `bits` new bits a value give all of its states back."""
    states = trellis_states(table / 0.3, one_mad(8), bits)
    new = states >> (8 - bits)
    for row, bits_of_row in zip(states, new):
        state = row[0]
        for stored, wanted in zip(bits_of_row[1:], row[1:]):
            state = state >> bits | stored << (8 - bits)
            assert state == wanted
    _, per_value = bitshift_trellis(table, bits, state_bits=8)
    assert per_value == (8 + 511 * bits) / 512 + 2 * 16 / 512


@pytest.mark.parametrize(("bits", "margin"), [(1, 0.20), (2, 0.33)])
def test_trellis_loses_less_than_any_scalar_quantizer(table, bits, margin):
    """Its error is a fifth (1 bit) or a third (2 bits) below Lloyd–Max's, and above the bound."""
    values, _ = bitshift_trellis(table, bits)
    error = squared_error(values, table)
    assert GAUSSIAN[bits] < error < (1 - margin) * LLOYD_MAX[bits]
    assert not values[3].any()


def test_more_states_lose_less(table):
    """Each four times as many states come nearer to the bound."""
    errors = [squared_error(bitshift_trellis(table, 2, state_bits=n)[0], table) for n in (6, 8, 10)]
    assert errors[0] > 1.02 * errors[1] > 1.04 * errors[2]
    assert bitshift_trellis(table, 2)[1] < hadamard_2bit(table)[1]
    assert errors[0] < squared_error(hadamard_2bit(table)[0], table)


# ---- water-filling ---------------------------------------------------------------------------


def test_entropy_coding_is_a_quarter_bit_above_the_gaussian_bound():
    """At some bits a value, plain rounding with its entropy costs ½ log2(2πe/12) = 0.254 more."""
    rows = np.random.default_rng(0).standard_normal((4096, 1, 16)).astype(np.float32)
    found = WaterFilling(rows).filled(0.4)
    rate = 8 * found.code_bytes / found.values
    bound = -0.5 * np.log2(squared_error(found.table, rows))
    assert found.values == rows.size
    assert rate - bound == pytest.approx(0.254, abs=0.05)
    gaussian = 8 * found.gaussian_bytes / found.values
    assert gaussian == pytest.approx(bound, abs=0.02)


def test_components_below_the_water_are_left_out():
    """Rows of four strong directions keep four components, and lose the rest and a step's error."""
    generator = np.random.default_rng(1)
    strong = generator.standard_normal((2048, 4)) @ generator.standard_normal((4, 32))
    rows = (strong + 0.01 * generator.standard_normal((2048, 32))).astype(np.float32)[:, None]
    step = 0.5
    found = WaterFilling(rows).filled(step)
    assert found.values == 4 * 2048
    wanted = 4 * step**2 / 12 + 28 * 0.01**2
    assert np.square(found.table - rows).sum(axis=2).mean() == pytest.approx(wanted, rel=0.05)
    assert found.bytes - found.code_bytes == 2 * 32 + 4 * (32 + 4)


def test_sizes_are_met():
    """The step for a size leads to no more bytes, and to nearly as many."""
    rows = np.random.default_rng(2).standard_normal((1024, 3, 16)).astype(np.float32)
    filling = WaterFilling(rows)
    for wanted in (8000, 16000):
        found = filling.of_size(wanted)
        assert 0.97 * wanted < found.bytes <= wanted
        assert found.bytes < rows.size * 2


def test_frequent_rows_have_smaller_errors():
    """With counts, the error times the frequency is the same for all rows."""
    rows = np.random.default_rng(3).standard_normal((2048, 1, 16)).astype(np.float32)
    counts = np.repeat([15, 0], 1024)
    found = WaterFilling(rows, counts).of_size(12000)
    often, rarely = np.square(found.table - rows).mean(axis=(1, 2)).reshape(2, -1).mean(axis=1)
    assert 8 < rarely / often < 20
