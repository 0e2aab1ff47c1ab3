"""Rows of a chunk encoded alone: joined, they are the chunk that is encoded in one piece."""

import json
import math
from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tolpack.calibration.calibrate import CalibrationInputs, calibrate
from tolpack.compress.encode import encode_chunk
from tolpack.compress.make_plan import TableInputs, make_plan
from tolpack.compress.settings import BuildSettings
from tolpack.runtime.progress import Reporter
from tolpack.sources.open_source import open_tables
from tolpack.workspace.limits import Limits
from tolpack.workspace.resources import Resources
from tolpack.workspace.workspace import open_workspace

ROWS = 12000
# name: input, rank, bits, drop, and other settings
PLANS = {
    "fixed": ("model", "none", 4, "none", {}),
    "fixed with a basis": ("model", "9", 8, "1", {}),
    "fixed, read": ("ngrams", "none", 8, "none", {}),
    "fixed, frames": ("table", "none", 4, "none", {}),
    "entropy": ("model", "none", "auto", "none", {"size": "60%"}),
    "entropy with a basis and a dropped layer": ("model", "auto", "auto", "1", {"size": "60%"}),
    "trellis": ("model", "none", "auto", "none", {"size": "60%", "trellis": True}),
    "trellis, with a basis": ("model", "8", "auto", "none", {"size": "60%", "trellis": True}),
    "entropy, read": ("ngrams", "none", "auto", "none", {"max_relative_error": "5%"}),
    "lossless": ("table", "none", "lossless", "none", {}),
    "lossless, raw": ("table", "none", "lossless", "none", {"compression": "none"}),
    "lossless n-grams": ("ngrams", "none", "lossless", "none", {}),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A MemoryLLM, a plain table and two tables of n-grams, by name."""
    folder = tmp_path_factory.mktemp("ranges")
    model = models.save_model(folder, vocab_size=ROWS, hidden_size=16, num_hidden_layers=3)
    source = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, 2, 64, generator=source) * 0.02
    save_file({"table": rows.bfloat16()}, folder / "table.safetensors")
    ngrams = folder / "ngrams"
    ngrams.mkdir()
    config = {
        "model_type": "qwen4_exp_text", "vocab_size": 50, "eos_token_id": 3, "hidden_size": 1024,
        "ngram_vocab_size_base": 300, "ple_layer_ids": [1, 3], "ple_embed_dim": 1024,
    }  # fmt: skip
    (ngrams / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {
        f"model.layers.{layer}.ple.ple_embedding.ngram_embedding.weight":
        torch.randn(rows, 64, generator=source).bfloat16()
        for layer, rows in {0: 5632, 2: 7168}.items()
    }  # fmt: skip
    save_file(tensors, ngrams / "model.safetensors")
    return {"model": model, "table": folder / "table.safetensors", "ngrams": ngrams}


@pytest.fixture(scope="module", params=PLANS)
def planned(request, inputs, tmp_path_factory):
    """A plan, its sources, and the blocks of each chunk that are encoded in one piece."""
    name, rank, bits, drop, more = PLANS[request.param]
    sources = open_tables(inputs[name])
    build_settings = BuildSettings.parse(
        rank, bits, drop, more.get("size"), None, more.get("compression", "auto"),
        more.get("max_relative_error"), trellis=more.get("trellis", False),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("planned")
    with open_workspace(sources, folder, Resources(threads=2), Reporter()) as workspace:
        tables = [
            TableInputs(
                one, calibrate(one, CalibrationInputs(), build_settings.loss_reach, workspace)
            )
            for one in sources
        ]
        plan = with_small_blocks(make_plan(tables, build_settings, workspace))
        whole = {
            (table, number): joined(plan.tables[table], one, workspace.limits, number)
            for table, one in enumerate(sources)
            for number in range(len(plan.tables[table].chunks))
        }
        yield plan, sources, workspace.limits, whole


def with_small_blocks(plan):
    """Return a plan whose blocks have a power of two of rows, so that these chunks can be cut."""
    tables = []
    for one in plan.tables:
        rows = [2 ** int(math.log2(encoding.rows_per_block)) for encoding in one.encodings]
        encodings = (replace(e, rows_per_block=n) for e, n in zip(one.encodings, rows))
        tables.append(replace(one, encodings=tuple(encodings)))
    return replace(plan, tables=tuple(tables))


def joined(plan, source, limits, number, **rows):
    """Return blocks of a chunk, one after the other."""
    return b"".join(encode_chunk(plan, source, limits, number, **rows))


@settings(max_examples=8)
@given(data=st.data())
def test_ranges_join_to_the_chunk(planned, data):
    """Blocks of ranges cut at multiples of 2048 and of a block's rows are those of the chunk,
    bit for bit, whatever threads and memory encode them.
    """
    plan, sources, limits, whole = planned
    table = data.draw(st.integers(0, len(sources) - 1))
    one = plan.tables[table]
    number = data.draw(st.integers(0, len(one.chunks) - 1))
    chunk = one.chunks[number]
    multiple = math.lcm(2048, one.encodings[chunk.encoding].rows_per_block)
    inner = range(multiple, chunk.rows, multiple)
    cuts = sorted(data.draw(st.sets(st.sampled_from(inner)))) if inner else []
    records = data.draw(st.sampled_from([1, limits.record_bytes]))
    other = Limits(data.draw(st.integers(1, 3)), limits.block_tokens, 0, records, 0)
    made = b"".join(
        joined(one, sources[table], other, number, first_row=first, rows=stop - first)
        for first, stop in zip([0, *cuts], [*cuts, chunk.rows])
    )
    assert made == whole[table, number]


def test_some_chunk_is_cut(planned):
    """Each of these plans has a chunk that can be cut."""
    plan = planned[0]
    cut = [
        chunk
        for one in plan.tables
        for chunk in one.chunks
        if chunk.rows > math.lcm(2048, one.encodings[chunk.encoding].rows_per_block)
    ]
    assert cut
    assert np.all([chunk.rows <= 16384 for chunk in cut])
