"""Checkpoints in many files: complete sets open, anything else is refused by name."""

import json

import families
import models
import numpy as np
import pytest
import torch

from tolpack.errors import CheckpointError
from tolpack.model.decoder import Decoder
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.sources.checkpoint.schema_tensors import joined_dimension
from tolpack.sources.checkpoint.tensor_slices import read_rows
from tolpack.sources.open_source import open_source

CONFIG = models.make_config()
IDS = torch.tensor([[3, 1, 4, 1, 5, 9]])


def save_bin(folder, state, config, shards, index=True):
    """Save ``pytorch_model-0000k-of-0000n.bin`` files with their index; returns the folder."""
    folder.mkdir()
    models.save_config(folder / "config.json", config)
    names, weight_map = sorted(state), {}
    for shard in range(shards):
        file = f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        part = {name: state[name] for name in names[shard::shards]}
        torch.save(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    if index:
        text = json.dumps({"weight_map": weight_map})
        (folder / "pytorch_model.bin.index.json").write_text(text, encoding="utf-8")
    return folder


def save_pieces(folder, state, config, count):
    """Save Meta's tensor-parallel pieces ``consolidated.0k.pth``; norms are in each of them."""
    folder.mkdir()
    models.save_config(folder / "config.json", config)
    for number in range(count):
        pieces = {}
        for name, tensor in families.meta(state, config).items():
            dimension = 1 if any(part in name for part in ("wo", "w2", "tok_embeddings")) else 0
            whole = tensor.ndim == 1
            piece = tensor if whole else torch.chunk(tensor, count, dimension)[number]
            pieces[name] = piece.clone()
        torch.save(pieces, folder / f"consolidated.{number:02}.pth")
    return folder


def tables_equal(path, other):
    first, second = open_source(path), open_source(other)
    ids = np.arange(first.vocab_size)
    return all(
        np.array_equal(first.field_rows(n)(ids), second.field_rows(n)(ids)) for n in range(3)
    )


@pytest.fixture
def ours(tmp_path):
    """The model as one file."""
    return models.save_pt(tmp_path / "ours.pt", models.make_state(CONFIG), CONFIG)


@pytest.mark.parametrize("index", [True, False])
def test_bin_shards_open(tmp_path, ours, index):
    """``pytorch_model-*.bin`` shards open like one file, with or without their index."""
    folder = save_bin(tmp_path / "m", models.make_state(CONFIG), CONFIG, 3, index)
    assert tables_equal(folder, ours)


@pytest.mark.parametrize("name", ["model.pt", "lit_model.pth", "pytorch_model.bin"])
def test_folder_with_one_torch_file_opens(tmp_path, ours, name):
    """A folder may hold config.json and one .pt, .pth or .bin."""
    folder = tmp_path / "m"
    folder.mkdir()
    models.save_config(folder / "config.json", CONFIG)
    torch.save(models.make_state(CONFIG), folder / name)
    assert tables_equal(folder, ours)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_tensor_parallel_pieces_are_joined(tmp_path, ours, count):
    """Pieces of tensors over several files join along the dimension that their shapes say."""
    config = {**CONFIG, "rope_interleaved": None, "vocab_size": 96}
    state = models.make_state(config)
    folder = save_pieces(tmp_path / "m", state, config, count)
    whole = models.save_pt(tmp_path / "whole.pt", families.meta(state, config), config)
    assert tables_equal(folder, whole)
    joined, expected = (Decoder(open_checkpoint(p))(IDS) for p in (folder, whole))
    assert torch.equal(joined, expected)


def test_missing_piece_is_named(tmp_path):
    """A tensor-parallel checkpoint without one of its files is refused by that file's name."""
    folder = save_pieces(tmp_path / "m", models.make_state(CONFIG), CONFIG, 4)
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(CheckpointError, match=r"shard 'consolidated\.01\.pth' is missing"):
        open_source(folder)


def test_missing_last_piece_is_noticed_by_shape(tmp_path):
    """Without the last piece the shapes do not add up, and the tensor is named."""
    folder = save_pieces(tmp_path / "m", models.make_state(CONFIG), CONFIG, 4)
    (folder / "consolidated.03.pth").unlink()
    with pytest.raises(
        CheckpointError,
        match="has pieces of shapes .* but the config asks for .* add the file that is missing",
    ):
        open_source(folder)


def test_fused_tensor_in_pieces_is_refused(tmp_path):
    """The order of rows in pieces of a fused tensor is unknown: it is not guessed."""
    folder = tmp_path / "m"
    folder.mkdir()
    models.save_config(folder / "config.json", CONFIG)
    named = families.openlm(models.make_state(CONFIG), CONFIG)
    for number in range(2):
        pieces = {
            n: torch.chunk(t, 2)[number].clone() if "w12" in n else t for n, t in named.items()
        }
        torch.save(pieces, folder / f"consolidated.{number:02}.pth")
    with pytest.raises(CheckpointError, match="w12.weight' is fused and split over 2 files"):
        open_source(folder)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_missing_numbered_shard_is_named_without_an_index(tmp_path, suffix):
    """The numbers in shard names tell that one is missing even if there is no index."""
    state = models.make_state(CONFIG)
    if suffix == "bin":
        folder = save_bin(tmp_path / "m", state, CONFIG, 3, index=False)
    else:
        folder = models.save_folder(tmp_path / "m", state, CONFIG, shards=3)
        (folder / "model.safetensors.index.json").unlink()
    next(folder.glob(f"*00002-of-00003.{suffix}")).unlink()
    with pytest.raises(CheckpointError, match=f"00002-of-00003.{suffix}' is missing from"):
        open_source(folder)


def test_missing_shard_tells_what_it_holds(tmp_path):
    """A shard that the index names and that is absent is named with a tensor that it held."""
    folder = models.save_folder(tmp_path / "m", models.make_state(CONFIG), CONFIG, shards=2)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match="copy it there; it holds .* 'embed_tokens.weight' among them"
    ):
        open_source(folder)


def test_index_of_another_checkpoint_is_refused(tmp_path):
    """An index that says a tensor is where it is not gives an error with tensor and file."""
    folder = models.save_folder(tmp_path / "m", models.make_state(CONFIG), CONFIG, shards=2)
    index = folder / "model.safetensors.index.json"
    text = json.loads(index.read_text(encoding="utf-8"))
    text["weight_map"]["norm.weight"] = "model-00001-of-00002.safetensors"
    text["weight_map"]["embed_tokens.weight"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(text), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is in model-0000.* but it is in model-0000"):
        open_source(folder)
    text["weight_map"]["layers.9.x"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(text), encoding="utf-8")
    with pytest.raises(CheckpointError, match="of different checkpoints"):
        open_source(folder)


def test_index_that_names_nothing_is_refused(tmp_path):
    """An index with an empty weight_map is not an index."""
    folder = models.save_folder(tmp_path / "m", models.make_state(CONFIG), CONFIG)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not an index with a 'weight_map'"):
        open_source(folder)


def test_two_torch_files_ask_which(tmp_path):
    """Several .pt files in a folder may be several checkpoints: none is chosen by chance."""
    for name in ("step1.pt", "step2.pt"):
        models.save_pt(tmp_path / name, models.make_state(CONFIG), CONFIG)
    with pytest.raises(CheckpointError, match="2 .pt files .*name the one that is the checkpoint"):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_lfs_pointer_is_recognised(tmp_path, name):
    """A Git LFS pointer in place of the weights is called what it is."""
    folder = tmp_path / "m"
    folder.mkdir()
    models.save_config(folder / "config.json", CONFIG)
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 22053608\n"
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="Git LFS pointer.*git lfs pull"):
        open_source(folder)


def test_rows_of_pieces_equal_rows_of_the_whole():
    """Rows are taken out of pieces along either dimension as out of the joined tensor."""
    whole = torch.arange(60.0).reshape(10, 6)
    ids = torch.tensor([9, 0, 4, 4, 5])
    for pieces in ([whole], list(whole.split(4)), list(whole.split(2, 1)), [whole, whole]):
        assert torch.equal(read_rows(pieces, (10, 6), ids), whole[ids])


@pytest.mark.parametrize(
    ("shapes", "whole", "dimension"),
    [
        ([(4, 3)], (4, 3), None),
        ([(2, 3), (2, 3)], (4, 3), 0),
        ([(4, 1), (4, 2)], (4, 3), 1),
        ([(3,), (3,)], (3,), None),
        ([(1,), (2,)], (3,), 0),
    ],
)
def test_joined_dimension(shapes, whole, dimension):
    """Pieces tell along which dimension they join by the shape of the whole."""
    assert joined_dimension(shapes, whole) == dimension


@pytest.mark.parametrize(
    "shapes", [[(2, 3)], [(2, 3), (3, 3)], [(4, 3), (4, 3, 1)], [(2, 3), (2, 4)], [()]]
)
def test_pieces_that_do_not_fit_are_refused(shapes):
    """Pieces that do not make the whole are an error, never a guess."""
    with pytest.raises(ValueError, match="do not make"):
        joined_dimension(shapes, (4, 3))


def test_one_shard_of_several_asks_for_the_folder(tmp_path):
    """A single shard is not a checkpoint: its folder is."""
    state = models.make_state(CONFIG)
    folder = models.save_folder(tmp_path / "m", state, CONFIG, shards=2)
    pieces = save_pieces(tmp_path / "p", state, CONFIG, 2)
    for path in (folder / "model-00001-of-00002.safetensors", pieces / "consolidated.00.pth"):
        with pytest.raises(CheckpointError, match="one of several files .*give their folder"):
            open_checkpoint(path)


def test_pieces_of_different_checkpoints_are_noticed(tmp_path):
    """A norm that every piece holds must be the same in all of them."""
    folder = save_pieces(tmp_path / "m", models.make_state(CONFIG | {"vocab_size": 96}), CONFIG, 2)
    other = torch.load(folder / "consolidated.01.pth", weights_only=True)
    other["layers.0.memory_norm.weight"] += 1
    torch.save(other, folder / "consolidated.01.pth")
    models.save_config(folder / "config.json", CONFIG | {"vocab_size": 96})
    with pytest.raises(CheckpointError, match=r"memory_norm.weight' differs between the files"):
        open_source(folder).field_rows(0)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_lfs_pointers_in_place_of_json_are_recognised(tmp_path, name):
    """A pointer in place of the config or the index is called what it is, too."""
    folder = models.save_folder(tmp_path / "m", models.make_state(CONFIG), CONFIG, shards=2)
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        open_source(folder)
