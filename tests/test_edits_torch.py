"""Modules of torch on packs with edits: their rows are those of `Pack.rows`."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from edited_packs import edit, sample_pack

import tolpack
from tolpack.errors import ConfigError
from tolpack.torch import ToLMemory
from tolpack.torch.embedding import PackEmbedding

DTYPES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SEVERAL = (
    "f32", "f16", "bf16", "int8", "hot-and-cold", "dropped", "basis", "everything", "multiplier",
    "mixed-widths", "ans-basis", "huge-values",
)  # fmt: skip


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """An open pack with edits of every recipe, by name."""
    folder, opened = tmp_path_factory.mktemp("edited"), {}
    for name in SEVERAL:
        with sample_pack(folder, name) as pack:
            path, _, _ = edit(pack, folder / f"{name}.edits")
            opened[name] = tolpack.open(pack.path, edits=[path])
    yield opened
    for pack in opened.values():
        pack.close()


def lookups(pack):
    """Yield ids of lookups: edited tokens alone, others alone, all, and all several times."""
    ids, every = pack.edited_tokens, np.arange(pack.vocab_size)
    yield from (ids[:1], ids, np.setdiff1d(every, ids)[:1], every, np.concatenate([every, ids]))


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("expand", ["host", "device"])
@pytest.mark.parametrize("hot_rows", [0, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_gives_edited_rows(name, expand, hot_rows, dtype, packs):
    """Exactly those of `Pack.rows`, rounded, in edited tokens; within the products' rounding in
    others, wherever records are decoded and rows stay.
    """
    pack = packs[name]
    hot = min(hot_rows, pack.vocab_size)
    memory = ToLMemory(pack, dtype, hot_rows=hot, expand=expand)
    for ids in lookups(pack):
        edited = np.isin(ids, pack.edited_tokens)
        for layer in range(pack.num_layers):
            wanted = torch.from_numpy(pack.rows(ids, [layer])[:, 0])
            found = memory(layer, torch.from_numpy(ids))
            assert torch.equal(found[edited], wanted[edited].to(dtype))
            if not pack.decoder.has_basis and dtype == torch.float32:
                np.testing.assert_array_equal(found.numpy(), wanted.numpy())
            limit = DTYPES[dtype] * float(wanted.nan_to_num().abs().max())
            np.testing.assert_allclose(found.float().numpy(), wanted.to(dtype).float().numpy(),
                                       atol=limit, rtol=DTYPES[dtype])  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_embedding_gives_edited_rows(name, dtype, packs):
    """All fields of `Pack.rows`, one after the other; dropped ones are zeros."""
    pack = packs[name]
    embedding = PackEmbedding(pack, dtype)
    for ids in lookups(pack):
        wanted = np.concatenate([pack.rows(ids, [n])[:, 0] for n in range(pack.num_layers)], axis=1)
        found = embedding(torch.from_numpy(ids)).float().numpy()
        limit = DTYPES[dtype] * float(np.abs(np.nan_to_num(wanted)).max())
        rounded = torch.from_numpy(wanted).to(dtype).float().numpy()
        np.testing.assert_allclose(found, rounded, atol=limit, rtol=DTYPES[dtype])


def test_another_scale_takes_the_place_of_the_packs_multiplier(packs):
    """In edited tokens as in others: edits hold rows with the pack's own multiplier."""
    pack = packs["multiplier"]
    every = torch.arange(pack.vocab_size)
    own, other = PackEmbedding(pack)(every), PackEmbedding(pack, scale=3.0)(every)
    factor = 3.0 / pack.decoder.multiplier
    np.testing.assert_allclose(other.numpy(), own.numpy() * factor, rtol=1e-6)


def test_hot_and_prefetched_rows_are_the_edited_ones(packs):
    """Rows that stay on the device, and those that were fetched ahead."""
    pack = packs["int8"]
    memory = ToLMemory(pack, hot_rows=pack.vocab_size)
    ids = torch.from_numpy(pack.edited_tokens)
    memory.prefetch(ids)
    for one in (memory, deepcopy(memory)):
        assert np.array_equal(one(0, ids).numpy(), pack.rows(ids.numpy())[:, 0])


def test_compiled_graphs_of_other_edits_find_no_rows(packs, tmp_path):
    """The name by which a graph finds its module says which edits it has."""
    pack = packs["int8"]
    with tolpack.open(pack.path) as plain:
        path, _, _ = edit(plain, tmp_path / "other", 7)
        with tolpack.open(pack.path, edits=[path]) as other:
            names = [PackEmbedding(one)._name.rpartition("-")[0] for one in (plain, pack, other)]
    assert len(set(names)) == 3
    with pytest.raises(ConfigError, match="compile again"):
        PackEmbedding.named(names[0])
