"""A pack's id and the key of ``--resume`` depend on every bit that the rows depend on."""

import os

import models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tables import save_table

import tolpack
from tolpack.errors import CheckpointError, ConfigError
from tolpack.sources.open_source import open_source

CONFIG = models.make_config(vocab_size=600)
SUFFIXES = (".npy", ".safetensors", ".h5")


def flipped(tensor, place, bit):
    """Return a copy of `tensor` with one bit changed, `place` counting its bytes."""
    data = tensor.contiguous().view(torch.uint8).numpy().copy().reshape(-1)
    data[place % data.size] ^= 1 << bit
    return torch.from_numpy(data).view(tensor.dtype).reshape(tensor.shape)


def fingerprint(path):
    """Fingerprint of a source, or ``None`` if it is refused."""
    try:
        source = open_source(path)
        source.check(lambda size: None)
        return source.fingerprint()
    except CheckpointError:
        return None


def pack_id(path):
    """The id in a pack's preamble."""
    with tolpack.open(path) as pack:
        return pack.container.preamble.pack_id


@pytest.fixture(scope="module")
def state():
    """Weights in bfloat16: every bit counts, and few patterns are not finite."""
    return models.make_state(CONFIG, torch.bfloat16)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_one_bit_of_any_weight_changes_the_fingerprint(state, tmp_path_factory, data):
    """Any bit of any tensor that rows depend on; a bit that makes NaN or Inf is refused."""
    folder = tmp_path_factory.mktemp("one-bit")
    names = [n for n in state if ".memory_" in n or n == "embed_tokens.weight"]
    name = data.draw(st.sampled_from(names))
    place, bit = data.draw(st.integers(0, 2**20)), data.draw(st.integers(0, 7))
    other = dict(state) | {name: flipped(state[name], place, bit)}
    before = fingerprint(models.save_pt(folder / "a.pt", state, CONFIG))
    after = fingerprint(models.save_pt(folder / "b.pt", other, CONFIG))
    assert before is not None
    assert after != before
    assert (after is None) == (not bool(torch.isfinite(other[name]).all()))


@given(
    dtype=st.sampled_from([torch.float32, torch.float16]),
    suffix=st.sampled_from(SUFFIXES),
    place=st.integers(0, 2**20),
    bit=st.integers(0, 7),
)
@settings(max_examples=60, deadline=None)
def test_one_bit_of_any_table_changes_the_fingerprint(tmp_path_factory, dtype, suffix, place, bit):
    """Any bit of a plain table, in every kind of file that it may lie in."""
    folder = tmp_path_factory.mktemp("one-bit")
    table = torch.randn(53, 3, 8, generator=torch.Generator().manual_seed(3)).to(dtype)
    before = fingerprint(save_table(folder / f"a{suffix}", table))
    after = fingerprint(save_table(folder / f"b{suffix}", flipped(table, place, bit)))
    assert after != before


def test_tables_of_many_blocks_are_read_to_their_end(tmp_path, monkeypatch):
    """A table that is hashed in many blocks: a bit of its first, a middle and its last row."""
    monkeypatch.setattr("tolpack.sources.identity._BLOCK_BYTES", 64)
    table = torch.randn(257, 2, 4, generator=torch.Generator().manual_seed(4))
    found = {fingerprint(save_table(tmp_path / "a.npy", table))}
    for row in (0, 128, 256):
        found.add(fingerprint(save_table(tmp_path / "b.npy", flipped(table, row * 32 + 31, 6))))
    assert len(found) == 4


def test_how_a_table_is_stored_leaves_its_fingerprint(tmp_path):
    """Fortran order, two dimensions or three, npy, safetensors or HDF5: the same rows."""
    table = np.random.default_rng(5).normal(size=(40, 3, 8)).astype(np.float32)
    np.save(tmp_path / "c.npy", table)
    np.save(tmp_path / "f.npy", np.asfortranarray(table))
    np.save(tmp_path / "flat.npy", table.reshape(40, 24))
    sources = [open_source(tmp_path / "c.npy"), open_source(tmp_path / "f.npy")]
    sources.append(open_source(tmp_path / "flat.npy", layers=3))
    sources.append(open_source(save_table(tmp_path / "t.safetensors", torch.from_numpy(table))))
    assert len({source.fingerprint() for source in sources}) == 1


def test_ids_of_packs_that_differ_in_most_rows(tmp_path):
    """Two tables that agree in every fourth row alone give packs of different ids, so that one
    that overwrites the other in place is never taken for it.
    """
    table = torch.randn(1024, 2, 8, generator=torch.Generator().manual_seed(6))
    other = table.clone()
    other[np.arange(1024) % 4 != 0] += 1
    ids = []
    for name, content in (("a", table), ("b", other)):
        tolpack.build(save_table(tmp_path / f"{name}.npy", content), tmp_path / f"{name}.tolpack")
        ids.append(pack_id(tmp_path / f"{name}.tolpack"))
    assert ids[0] != ids[1]
    with tolpack.open(tmp_path / "a.tolpack") as pack:
        pack.rows([1])
        content = (tmp_path / "b.tolpack").read_bytes()
        with open(tmp_path / "a.tolpack", "r+b") as file:
            file.write(content)
        with pytest.raises(tolpack.ChecksumError):
            pack.rows([1, 500])


def test_resuming_with_a_swapped_checkpoint_is_refused(tmp_path, monkeypatch):
    """One row of the embedding is another one: a begun pack is not continued."""
    state = models.make_state(CONFIG)
    path = models.save_pt(tmp_path / "m.pt", state, CONFIG)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tolpack.container.writer.PackWriter.commit", killed)
        with pytest.raises(KeyboardInterrupt):
            tolpack.build(path, tmp_path / "p.tolpack")
    state["embed_tokens.weight"][301] += 0.5
    models.save_pt(path, state, CONFIG)
    with pytest.raises(ConfigError, match="other inputs or settings"):
        tolpack.build(path, tmp_path / "p.tolpack", resume=True)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".pt"])
def test_an_input_that_changes_during_the_build_is_refused(suffix, tmp_path, monkeypatch):
    """What was hashed must be what was encoded: no pack appears if a file changed in between."""
    path = tmp_path / f"m{suffix}"
    if suffix == ".pt":
        models.save_pt(path, models.make_state(CONFIG), CONFIG)
    else:
        save_table(path, torch.randn(64, 2, 8))
    from tolpack.container.writer import PackWriter

    add_chunk = PackWriter.add_chunk

    def touched(self, *arguments):
        os.utime(path, ns=(1, 1))
        return add_chunk(self, *arguments)

    monkeypatch.setattr(PackWriter, "add_chunk", touched)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        tolpack.build(path, tmp_path / "p.tolpack")
    assert not (tmp_path / "p.tolpack").exists()


def test_a_stored_head_that_differs_in_one_row_is_not_tied(tmp_path):
    """`tie_word_embeddings` with an output head that differs somewhere is refused."""
    from tolpack.model.decoder import Decoder
    from tolpack.sources.checkpoint.checkpoint import open_checkpoint

    config = CONFIG | {"tie_word_embeddings": True}
    state = models.make_state(config)
    state["lm_head.weight"] = state["embed_tokens.weight"].clone()
    Decoder(open_checkpoint(models.save_pt(tmp_path / "same.pt", state, config)))
    state["lm_head.weight"][599] += 1
    with pytest.raises(CheckpointError, match=r"lm_head\.weight' differs from the embedding"):
        Decoder(open_checkpoint(models.save_pt(tmp_path / "other.pt", state, config)))


def test_sections_of_a_swapped_input_are_not_resumed(tmp_path, monkeypatch):
    """Another table is there while a section is written, the build is killed, the first table comes
    back: nothing of the other one is in the resumed pack.
    """
    from tolpack.container.writer import PackWriter

    path = tmp_path / "t.npy"
    first, second = np.ones((64, 2, 8), np.float32), np.full((64, 2, 8), 2, np.float32)
    np.save(path, first)
    content, times = path.read_bytes(), os.stat(path)
    plain = PackWriter._write_section

    def swapped(self, *arguments):
        with open(path, "r+b") as file:
            file.seek(-first.nbytes, os.SEEK_END)
            file.write(second.tobytes())
        plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PackWriter, "_write_section", swapped)
        with pytest.raises(CheckpointError, match="was changed while it was read"):
            tolpack.build(path, tmp_path / "p.tolpack")
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    tolpack.build(path, tmp_path / "p.tolpack", resume=True)
    with tolpack.open(tmp_path / "p.tolpack") as pack:
        assert np.allclose(pack.rows(range(64)), 1, rtol=0.2)
