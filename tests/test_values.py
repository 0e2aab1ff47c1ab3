"""Codecs of single values, against their promises and against independent formulas."""

import math
import struct
import warnings
from fractions import Fraction

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from packs import bfloat16, e4m3, reference_value

from tolpack.codecs.bfloat16 import from_bfloat16, to_bfloat16
from tolpack.codecs.encodings import Part
from tolpack.codecs.part_values import decode_values, encode_values
from tolpack.errors import ConfigError, FormatError

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


def decoded(values, part):
    scales, codes = encode_values(values, part)
    assert scales.shape == (len(values), part.scale_bytes)
    assert codes.shape == (len(values), part.code_bytes)
    return decode_values(scales, codes, part), scales


def scale_of_each_value(scales, part):
    per_group = [[bfloat16(row[n : n + 2].tobytes()) for n in range(0, len(row), 2)]
                 for row in scales]  # fmt: skip
    return np.repeat(np.array(per_group), part.group_size, axis=1)[:, : part.values]


@st.composite
def grouped_rows(draw):
    """Rows of odd and even widths, with zeros and magnitudes from 1e-30 to 1e30."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    group = 2 * draw(st.integers(1, 12))
    mantissas = draw(npst.arrays(np.float64, (rows, width), elements=st.floats(-1, 1)))
    exponents = draw(npst.arrays(np.int64, (rows, width), elements=st.integers(-2, 2)))
    magnitude = draw(st.sampled_from([1e-30, 1e-20, 1e-3, 1.0, 1e3, 1e20, 1e30]))
    return (mantissas * 10.0**exponents * magnitude).astype(np.float32), group


@pytest.mark.parametrize("codec", ["int8", "int4"])
@settings(max_examples=150)
@given(case=grouped_rows())
def test_the_error_is_at_most_half_of_the_stored_scale(codec, case):
    """Every value is within scale / 2 of what was encoded, by the scale that the file holds."""
    values, group = case
    assume((np.abs(values) > 1e-33).any() or not values.any())
    part = Part(codec, values.shape[1], group)
    values = np.where(np.abs(values) < 1e-33, 0, values).astype(np.float32)
    found, scales = decoded(values, part)
    error = np.abs(found.astype(np.float64) - values)
    assert (error <= scale_of_each_value(scales, part) / 2 * (1 + 1e-6)).all()


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("magnitude", [1e-34, 1e-36, 1e-37, 1e-38])
def test_groups_near_the_smallest_normal_number_keep_the_bound(codec, magnitude):
    """The bound holds where the scale is a subnormal number, whose inverse is infinite."""
    values = np.array([[0, 1, -0.5, 0.25, 0, 0]], np.float32) * np.float32(magnitude)
    part = Part(codec, 6, 4)
    found, scales = decoded(values, part)
    scale = scale_of_each_value(scales, part)
    assert (np.abs(found.astype(np.float64) - values) <= scale / 2 * (1 + 1e-6)).all()


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_the_smallest_numbers_of_all_decode_to_nearly_nothing(codec):
    """A group below every scale decodes to zeros or to itself, never to NaN or something large."""
    values = np.array([[1e-45, 0, -1e-42, 1e-40]], np.float32)
    found, _ = decoded(values, Part(codec, 4, 4))
    assert (np.abs(found - values) <= 1e-39).all()


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_the_largest_numbers_of_all_stay_finite(codec):
    """A group with float32's largest number decodes to finite values."""
    largest = np.finfo(np.float32).max
    found, _ = decoded(np.array([[largest, -largest, 0, 1]], np.float32), Part(codec, 4, 4))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("width", [1, 3, 4, 5, 8, 9, 15])
def test_decoding_agrees_with_a_slow_decoder(codec, width):
    """Codes and scales mean what the format says, value by value, for every remainder."""
    values = np.random.default_rng(width).normal(size=(3, width)).astype(np.float32)
    part = Part(codec, width, 4)
    spec = {"codec": codec, "values": width, "group_size": 4}
    scales, codes = encode_values(values, part)
    slow = [
        [reference_value(spec, scales[r].tobytes(), codes[r].tobytes(), n) for n in range(width)]
        for r in range(3)
    ]
    assert decode_values(scales, codes, part).tolist() == slow


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_zeros_are_kept(codec):
    """A row of zeros decodes to exact zeros and stores zero scales."""
    found, scales = decoded(np.zeros((2, 7), np.float32), Part(codec, 7, 4))
    assert not found.any()
    assert not scales.any()


def test_the_bytes_of_a_small_int4_group():
    """Value j stands in the low half of byte j, value j + ceil(g/2) in its high half, plus 8."""
    values = np.array([[7, -7, 1, -1, 2, 7, 0]], np.float32)
    scales, codes = encode_values(values, Part("int4", 7, 4))
    assert scales.tolist() == [[0x80, 0x3F, 0x80, 0x3F]]  # 1.0 as bfloat16, little-endian, twice
    # 7, -7 | 1, -1 -> 15, 1 | 9, 7; then a group of three: 2, 7 | 0 and a hole -> 10, 15 | 8, 8
    assert codes.tolist() == [[0x9F, 0x71, 0x8A, 0x8F]]


def test_the_bytes_of_a_small_int8_group():
    """Codes are two's complement, one byte each, in order."""
    scales, codes = encode_values(np.array([[127, -127, 1]], np.float32), Part("int8", 3, 2))
    assert codes.tolist()[0][:2] == [127, 129]
    assert scales.shape == (1, 4)
    assert codes.tolist()[0][2] == 127


@settings(max_examples=60)
@given(values=npst.arrays(np.float32, (3, 5), elements=FINITE))
def test_f32_is_lossless(values):
    """float32 values come back bit by bit."""
    found, _ = decoded(values, Part("f32", 5))
    assert found.tobytes() == values.tobytes()


@settings(max_examples=60)
@given(bits=npst.arrays(np.uint16, (3, 5)))
def test_bf16_is_lossless_on_its_own_values(bits):
    """Finite bfloat16 values come back bit by bit, negative zero and subnormals included."""
    bits = np.where((bits & 0x7F80) == 0x7F80, bits ^ 0x4000, bits)
    found, _ = decoded(from_bfloat16(bits), Part("bf16", 5))
    assert (found.view(np.uint32) >> 16 == bits).all()


@settings(max_examples=60)
@given(bits=npst.arrays(np.uint16, (3, 5)))
def test_f16_is_lossless_on_its_own_values(bits):
    """Finite float16 values come back bit by bit, negative zero and subnormals included."""
    values = np.where((bits & 0x7C00) == 0x7C00, bits ^ 0x4000, bits).view(np.float16)
    found, _ = decoded(values.astype(np.float32), Part("f16", 5))
    assert found.astype(np.float16).tobytes() == values.tobytes()


def test_f16_refuses_what_it_cannot_hold():
    """A value beyond 65504 gives a ConfigError that names the way out, and no infinity."""
    assert decoded(np.array([[65504.0]], np.float32), Part("f16", 1))[0] == 65504
    for value in (65520.0, -1e6, 3e38):
        with pytest.raises(ConfigError, match="65504.*--bits"):
            encode_values(np.array([[0, value]], np.float32), Part("f16", 2))


def test_f8e4m3_agrees_with_the_formula_for_all_codes():
    """Each of the 256 codes decodes to sign * mantissa * 2^exponent, and 0x7F and 0xFF to NaN."""
    codes = np.arange(256, dtype=np.uint8)[None]
    scales = np.ones((1, 1), "<f4").view(np.uint8)
    found = decode_values(scales, codes, Part("f8e4m3", 256, 256))[0].tolist()
    expected = [e4m3(code) for code in range(256)]
    assert [n for n in range(256) if math.isnan(found[n])] == [0x7F, 0xFF]
    assert all(a == b or math.isnan(a) for a, b in zip(expected, found))
    assert max(v for v in found if not math.isnan(v)) == 448
    assert math.copysign(1, found[0x80]) == -1


def test_f8e4m3_multiplies_each_group_by_its_scale():
    """Group n of the codes is multiplied by float32 scale n, the shorter last one too."""
    scales = np.array([[1, -0.5, 3]], "<f4").view(np.uint8)
    codes = np.full((1, 5), 0x38, np.uint8)  # 1.0
    found = decode_values(scales, codes, Part("f8e4m3", 5, 2))
    assert found.tolist() == [[1, 1, -0.5, -0.5, 3]]


def test_e8m0_scales_are_all_powers_of_two():
    """Scale b is 2^(b - 127) for b = 0 … 254, and each of the 254 fp8 numbers times it is exact."""
    codes = np.array([code for code in range(256) if code & 127 != 127], np.uint8)
    part = Part("f8e4m3-e8m0", 254, 254)
    for scale in range(255):
        found = decode_values(np.array([[scale]], np.uint8), codes[None], part)[0].tolist()
        exact = [e4m3(code) * 2.0 ** (scale - 127) for code in codes.tolist()]
        limit = 2.0**128
        assert found == [v if abs(v) < limit else math.copysign(math.inf, v) for v in exact]


def test_e8m0_scales_belong_to_groups():
    """Group n of the codes is multiplied by scale n, the shorter last one too."""
    scales = np.array([[127, 126, 130]], np.uint8)
    found = decode_values(scales, np.full((1, 5), 0x38, np.uint8), Part("f8e4m3-e8m0", 5, 2))
    assert found.tolist() == [[1, 1, 0.5, 0.5, 8]]


def test_fp8_with_a_step_multiplies_all_codes():
    """Each of the 256 codes is multiplied by the step, rounded once; NaN stays NaN."""
    codes, step = np.arange(256, dtype=np.uint8)[None], float(np.float32(-0.0123))
    found = decode_values(np.empty((1, 0), np.uint8), codes, Part("f8e4m3-step", 256, step=step))
    expected = [np.float32(e4m3(code) * step) for code in range(256)]
    assert np.array_equal(found[0], expected, equal_nan=True)


@pytest.mark.parametrize("part", [
    Part("f8e4m3", 2, 2), Part("f8e4m3-e8m0", 2, 2), Part("f8e4m3-step", 2, step=0.5)
])  # fmt: skip
def test_fp8_is_not_encoded_from_floats(part):
    """Encoding to fp8 is refused by the codec's name: such tables are stored as they are."""
    with pytest.raises(ConfigError, match=f"^{part.codec} tables"):
        encode_values(np.zeros((1, 2), np.float32), part)


def ggml_rows():
    """Rows of 10 blocks of GGML: heavy tails, blocks of zeros, ties of magnitude and halves."""
    rng = np.random.default_rng(0)
    rows = rng.standard_t(3, size=(200, 320)).astype(np.float32)
    rows *= 10.0 ** rng.integers(-9, 4, (200, 1)).astype(np.float32)
    rows[0], rows[1, 32:64] = 0, 0
    rows[2:40] = rng.integers(-8, 9, (38, 320)) / 2
    return np.clip(rows, -1e5, 1e5)


@pytest.mark.parametrize("codec", ["q8_0", "q4_0"])
def test_ggml_codecs_are_those_of_ggml(codec):
    """Scales, codes and values are those of the gguf package, bit for bit, in its own order."""
    gguf, part = pytest.importorskip("gguf"), Part(codec, 320, 32)
    kind = gguf.GGMLQuantizationType[codec.upper()]
    blocks = gguf.quants.quantize(ggml_rows(), kind)
    scales, codes = encode_values(ggml_rows(), part)
    own = [scales.reshape(200, 10, -1), codes.reshape(200, 10, -1)]
    assert np.concatenate(own, axis=2).tobytes() == blocks.tobytes()
    expected = gguf.quants.dequantize(blocks, kind)
    assert decode_values(scales, codes, part).tobytes() == expected.tobytes()


@pytest.mark.parametrize("codec", ["q8_0", "q4_0"])
def test_every_ggml_code_and_scale_decodes(codec):
    """Any finite float16 scale times any code is the float32 product, odd remainders included."""
    rng, part = np.random.default_rng(1), Part(codec, 7, 4)
    numbers = np.arange(65536, dtype=np.uint16).view(np.float16)
    scales = numbers[np.isfinite(numbers)].reshape(-1, 2).view(np.uint8)
    codes = rng.integers(0, 256, (len(scales), part.code_bytes), np.uint8)
    found = decode_values(scales, codes, part)
    spec = {"codec": codec, "values": 7, "group_size": 4}
    for n in range(0, len(scales), 97):
        row = scales[n].tobytes(), codes[n].tobytes()
        assert found[n].tolist() == [reference_value(spec, *row, j) for j in range(7)]


@pytest.mark.parametrize("codec", ["q8_0", "q4_0"])
def test_a_scale_that_float16_cannot_hold_is_refused(codec):
    """Values whose scale would be infinite give a ConfigError that names the limit."""
    with pytest.raises(ConfigError, match="65504"):
        encode_values(np.array([[1e8, 0]], np.float32), Part(codec, 2, 2))


def nearest_bfloat16(value):
    """Round to nearest, ties to even, in exact fractions."""
    exact = Fraction(value)
    exponent = max(math.frexp(value)[1] - 1, -126) if value else -126
    step = Fraction(2) ** (exponent - 7)
    quotient = exact / step
    return round(quotient) * step  # Fraction's round is half to even


@settings(max_examples=300)
@given(value=FINITE)
def test_bfloat16_rounds_to_nearest_even(value):
    """Rounding equals exact rounding in fractions; what would overflow gives the largest number."""
    value = struct.unpack("<f", struct.pack("<f", value))[0]
    found = float(from_bfloat16(to_bfloat16(np.array([value], np.float32)))[0])
    largest = bfloat16(b"\x7f\x7f")
    expected = max(-largest, min(largest, float(nearest_bfloat16(value))))
    assert found == expected
    assert math.copysign(1, found) == math.copysign(1, value)


@pytest.mark.parametrize(("codec", "bad"), [
    ("int8", b"\x80\x7f"), ("int8", b"\x80\xff"), ("int4", b"\xc0\x7f"), ("int4", b"\xff\xff"),
    ("f8e4m3", struct.pack("<f", math.inf)), ("f8e4m3", struct.pack("<f", math.nan)),
    ("f8e4m3-e8m0", b"\xff"), ("q8_0", b"\x00\x7c"), ("q8_0", b"\x01\xfc"),
    ("q4_0", b"\x00\xfc"), ("q4_0", b"\xff\x7f"),
])  # fmt: skip
def test_scales_that_are_not_finite_are_refused(codec, bad):
    """A NaN or infinite scale anywhere gives FormatError scale-not-finite."""
    part = Part(codec, 6, 2)
    size = len(bad)
    for group in range(3):
        scales = np.zeros((2, part.scale_bytes), np.uint8)
        scales[1, group * size : (group + 1) * size] = list(bad)
        with pytest.raises(FormatError) as caught:
            decode_values(scales, np.zeros((2, part.code_bytes), np.uint8), part)
        assert caught.value.code == "scale-not-finite"


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("scale", [b"\x00\x00", b"\x01\x00", b"\x80\x00"])
def test_zero_and_subnormal_scales_decode(codec, scale):
    """A scale of zero or a subnormal one is a number like any other."""
    part = Part(codec, 4, 4)
    scales = np.array([list(scale)], np.uint8)
    codes = np.full((1, part.code_bytes), 0x77, np.uint8)
    code = 0x77 if codec == "int8" else 7 - 8
    expected = float(np.float32(code * bfloat16(scale)))
    assert decode_values(scales, codes, part).tolist() == [[expected] * 4]


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_a_huge_finite_scale_raises_no_warning(codec):
    """Codes times the largest scale decode without another exception than tolpack's."""
    part = Part(codec, 4, 4)
    codes = np.full((1, part.code_bytes), 0x7F, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            decode_values(np.array([[0x7F, 0x7F]], np.uint8), codes, part)
        except FormatError as error:
            assert error.code


@pytest.mark.parametrize("part", [
    Part("f32", 3), Part("f16", 3), Part("bf16", 3), Part("int8", 3, 2), Part("int4", 3, 2),
    Part("q8_0", 3, 2), Part("q4_0", 3, 2),
])  # fmt: skip
def test_strided_bytes_decode_like_contiguous_ones(part):
    """Scales and codes may be any slices of records."""
    values = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    scales, codes = encode_values(values, part)
    wide = np.full((8, 3 + scales.shape[1] + codes.shape[1]), 0x7F, np.uint8)
    wide[::2, 3 : 3 + scales.shape[1]] = scales
    wide[::2, 3 + scales.shape[1] :] = codes
    cut = wide[::2, 3 : 3 + scales.shape[1]], wide[::2, 3 + scales.shape[1] :]
    assert (decode_values(*cut, part) == decode_values(scales, codes, part)).all()


@pytest.mark.parametrize("codec", ["int8", "int4", "q8_0", "q4_0"])
def test_encoding_is_deterministic_by_row(codec):
    """A row's bytes do not depend on the rows around it."""
    values = np.random.default_rng(2).normal(size=(9, 21)).astype(np.float32)
    part = Part(codec, 21, 8)
    together = encode_values(values, part)
    for n in range(9):
        alone = encode_values(values[n : n + 1], part)
        assert [a.tobytes() for a in alone] == [t[n].tobytes() for t in together]
