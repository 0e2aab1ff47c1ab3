"""The build settings: every form that is understood, and every other that is refused."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tolpack.compress.settings import dropped_fields, parse_drop, parse_rank, parse_size
from tolpack.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "ranks"),
    [
        ("none", (None, None, None)),
        ("full", (24, 24, 24)),
        ("FULL", (24, 24, 24)),
        ("auto", None),
        ("7", (7, 7, 7)),
        (7, (7, 7, 7)),
        ("24", (24, 24, 24)),
        ("50%", (12, 12, 12)),
        ("12.5%", (3, 3, 3)),
        ("100%", (24, 24, 24)),
        ("0.1%", (1, 1, 1)),
        ("1,24,8", (1, 24, 8)),
        (" 5 ", (5, 5, 5)),
    ],
)
def test_rank_forms(value, ranks):
    """Each form of --rank gives the ranks of a model of three layers and full rank 24."""
    assert parse_rank(value).for_layers(3, 24) == ranks


@pytest.mark.parametrize(
    "value", ["", "bogus", "-1", "1.5", "0%", "101%", "-5%", "1,,2", "1,", "%", "nan%", "1e3",
              "9" * 10, True, "auto:3", "50 %"],
)  # fmt: skip
def test_rank_that_is_not_understood(value):
    """Anything else is refused, naming --rank and what it may be."""
    with pytest.raises(ConfigError, match="--rank"):
        parse_rank(value)


@pytest.mark.parametrize("value", ["0", "25", "8,0,8", "8,8,99"])
def test_rank_outside_the_model(value):
    """A rank of 0 or above the full rank is refused with the limit."""
    with pytest.raises(ConfigError, match=r"outside 1 … 24"):
        parse_rank(value).for_layers(3, 24)


def test_rank_zero_points_to_drop():
    """Rank 0 is answered with the option that leaves a layer out."""
    with pytest.raises(ConfigError, match="use --drop"):
        parse_rank("8,0,8").for_layers(3, 24)


def test_rank_list_of_another_length():
    """A list must have one rank per layer."""
    with pytest.raises(ConfigError, match="lists 2 ranks, but there are 3 layers"):
        parse_rank("8,8").for_layers(3, 24)


@pytest.mark.parametrize(
    ("value", "layers"),
    [
        ("none", ()),
        ("None", ()),
        ("3", (3,)),
        ("3,7-9", (3, 7, 8, 9)),
        ("9,3,3", (3, 9)),
        ("2-2", (2,)),
        (" 1 , 0 ", (0, 1)),
    ],
)
def test_drop_forms(value, layers):
    """Numbers and ranges give ascending layers, each once."""
    assert parse_drop(value) == layers


@pytest.mark.parametrize("value", ["", "auto", "auto:2", "9-7", "-1", "1,", "a", "1.5", "1-2-3"])
def test_drop_that_is_not_understood(value):
    """Anything else is refused, naming --drop and an example."""
    with pytest.raises(ConfigError, match="--drop .* is not understood: expected none or 3,7-9"):
        parse_drop(value)


def test_drop_against_a_model():
    """Layers beyond the model, or all of them, cannot be dropped."""
    assert dropped_fields((0, 2), [0, 1, 2]) == (0, 2)
    with pytest.raises(ConfigError, match=r"--drop 3 is out of range 0 … 2"):
        dropped_fields((1, 3), [0, 1, 2])
    with pytest.raises(ConfigError, match="every layer: keep at least one"):
        dropped_fields((0, 1, 2), [0, 1, 2])


def test_drop_against_fields_of_some_layers():
    """Layers are the model's; all fields that a layer reads are dropped together."""
    assert dropped_fields((1, 7), [1, 2, 7]) == (0, 2)
    assert dropped_fields((3,), [1, 1, 3, 3]) == (2, 3)
    with pytest.raises(ConfigError, match=r"--drop 0 is out of range 1, 2, 7"):
        dropped_fields((0,), [1, 2, 7])


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("800MB", 800_000_000),
        ("800mb", 800_000_000),
        ("1.5 KB", 1500),
        ("2KiB", 2048),
        ("3MiB", 3 * 2**20),
        ("1GB", 10**9),
        ("1GiB", 2**30),
        ("1TB", 10**12),
        ("12%", 120),
        ("0.1%", 1),
        ("200%", 2000),
        ("77B", 77),
        ("77", 77),
        (77, 77),
    ],
)
def test_size_forms(value, size):
    """Bytes with decimal and binary units, and percentages of the FP16 table (here 1,000)."""
    assert parse_size(value, 1000) == size


@pytest.mark.parametrize(
    "value", ["", "0", "0%", "0.01%", "-1", "1PB", "1IB", "MB", "1e3", "inf", "nan", "1,5MB", "%"]
)
def test_size_that_is_not_understood(value):
    """Anything else, and nothing at all, is refused, naming --size."""
    with pytest.raises(ConfigError, match="--size"):
        parse_size(value, 1000)


@given(st.text(alphabet="0123456789.,-%abefiklmnotuxKMGTIB ", max_size=20) | st.text(max_size=8))
@example("9" * 400)
@example("9" * 400 + "%")
@example("9" * 5000)
def test_any_text_parses_or_is_refused(text):
    """No text makes a parser raise anything but ConfigError."""
    for parse in (parse_rank, parse_drop, lambda value: parse_size(value, 1000)):
        try:
            parse(text)
        except ConfigError:
            continue
