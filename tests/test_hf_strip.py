"""Folders without their table: what ``tolpack strip`` writes, and who loads it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from mounted_models import FAMILIES, logits, save_with_packs, stock
from saved_tables import PLE, read, write
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import tolpack
import tolpack.hf
from tolpack.cli import main
from tolpack.errors import CheckpointError, ConfigError, FileAccessError
from tolpack.hf import stripping
from tolpack.pack import open_first_table
from tolpack.torch.embedding import PackEmbedding

IDS = torch.tensor([[3, 7, 7, 39, 2, 30, 11]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Family → its folder and a lossless pack, for reading only."""
    return save_with_packs(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def stripped(saved, tmp_path_factory):
    """A Gemma 3n without its table, with a tokenizer, for reading only."""
    folder, pack = saved["gemma3n"]
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(48)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    out = tmp_path_factory.mktemp("stripped") / "m"
    tolpack.hf.strip(folder, out, pack)
    return out


def is_mounted(model):
    """Whether a model reads a pack."""
    return any(isinstance(module, PackEmbedding) for module in model.modules())


def contents(folder):
    """Return the bytes of every file."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stripped_folder_loads_as_the_whole_one(saved, tmp_path, family):
    """By `load` and by ``from_pretrained``, with the same logits and without a missing weight."""
    folder, pack = saved[family]
    before, expected = contents(folder), logits(stock(folder), IDS)
    result = tolpack.hf.strip(folder, tmp_path / "out", pack)
    assert result.pack == pack.name
    assert result.nbytes == sum(map(len, contents(tmp_path / "out").values()))
    for model, report in (
        (tolpack.hf.load(tmp_path / "out")[0], None),
        stock(tmp_path / "out", output_loading_info=True),
    ):
        assert is_mounted(model)
        assert torch.equal(logits(model, IDS), expected)
        if report is not None:
            assert not any(map(len, report.values())), report
    assert contents(folder) == before


@pytest.mark.parametrize("family", ["gemma3n", "qwen4_exp_two"])
def test_all_else_is_kept_bit_for_bit(saved, tmp_path, family):
    """Tensors, settings and other files; the index names what is there, and counts its bytes."""
    folder, pack = saved[family]
    result = tolpack.hf.strip(folder, tmp_path / "out", pack)
    tensors, config = read(folder)
    kept, mended = read(tmp_path / "out")
    assert set(tensors) - set(kept) == set(result.removed_tensors)
    removed = sum(tensors[name].nbytes for name in result.removed_tensors)
    assert result.removed_bytes == removed > 3000
    for name, tensor in kept.items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])
    assert {name: mended[name] for name in config} == config
    with open_first_table(pack) as opened:
        pack_id = f"{opened.container.preamble.pack_id:016x}"
    assert mended["quantization_config"] == {
        "quant_method": "tolpack", "pack": pack.name, "pack_id": pack_id,
        "written_by": "tolpack strip",
    }  # fmt: skip
    before, index = (
        json.loads((where / "model.safetensors.index.json").read_text())
        for where in (folder, tmp_path / "out")
    )
    assert index["weight_map"].keys() == kept.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in kept.values())
    values = sum(tensors[name].numel() for name in result.removed_tensors)
    total = before["metadata"]["total_parameters"] - values
    assert index["metadata"]["total_parameters"] == total
    for name, shard in index["weight_map"].items():
        assert (tmp_path / "out" / shard).is_file(), name


def test_a_tokenizer_comes_along(stripped):
    """`load` gives it."""
    _, tokenizer = tolpack.hf.load(stripped)
    assert tokenizer.decode([3, 7]) == "w3 w7"


def test_without_tolpack_the_folder_is_refused(stripped, tmp_path):
    """Plain transformers raises under every loading class, and the error says what to do: for the
    folder, and for a repository of the same files.
    """
    cache = tmp_path / "models--someone--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(stripped, cache / "snapshots" / ("0" * 40))
    script = (
        "import sys, transformers\n"
        "classes = 'AutoModelForCausalLM', 'AutoModel', 'Gemma3nForCausalLM'\n"
        "for loading, place in [*((one, sys.argv[1]) for one in classes),\n"
        "                       (classes[0], 'someone/model')]:\n"
        "    try:\n"
        "        getattr(transformers, loading).from_pretrained(place)\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(stripped)],
        capture_output=True, text=True, check=True, env=os.environ | offline,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert "pip install 'tolpack[hf]', then import tolpack.hf" in line


def test_with_tolpack_plain_transformers_loads_it(stripped):
    """One import is enough, in a fresh process, under every loading class."""
    script = (
        "import sys, tolpack.hf, torch, transformers\n"
        "for loading in (transformers.AutoModelForCausalLM, transformers.AutoModel):\n"
        "    model = loading.from_pretrained(sys.argv[1])\n"
        "    print(type(model.get_submodule('model.embed_tokens_per_layer' if hasattr(model,\n"
        "        'lm_head') else 'embed_tokens_per_layer')).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(stripped)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["PackEmbedding"] * 2, done.stderr


def test_another_pack_may_be_named(saved, stripped, tmp_path):
    """A pack that is given takes the place of the one that the folder names."""
    other = tmp_path / "other.tolpack"
    tolpack.build(saved["gemma3n"][0], other, bits=8)
    model, _ = tolpack.hf.load(stripped, other, io="pread")
    (found,) = (one.pack for one in model.modules() if isinstance(one, PackEmbedding))
    assert (found.path, found.stats()["io"]) == (str(other), "pread")


@pytest.mark.parametrize("family", ["gemma3n", "gemma4_multimodal", "qwen4_exp_two"])
def test_a_mounted_model_saves_such_a_folder(saved, tmp_path, family):
    """``save_pretrained`` writes weights, pack and a configuration that plain loading refuses."""
    folder, pack = saved[family]
    for name, model in (
        ("loaded", tolpack.hf.load(folder, pack)[0]),
        ("mounted", tolpack.hf.mount(stock(folder), pack)),
    ):
        model.save_pretrained(tmp_path / name, max_shard_size="6KB")
        assert (tmp_path / name / pack.name).read_bytes() == pack.read_bytes()
        _, config = read(tmp_path / name)
        assert "import tolpack.hf" in config["transformers_weights"]
        again = stock(tmp_path / name)
        assert is_mounted(again)
        assert torch.equal(logits(again, IDS), logits(stock(folder), IDS))
    again.save_pretrained(tmp_path / "mounted")  # where its pack lies
    assert torch.equal(logits(stock(tmp_path / "mounted"), IDS), logits(again, IDS))
    with pytest.raises(ConfigError, match="push_to_hub would upload the folder without its pack"):
        again.save_pretrained(tmp_path / "hub", push_to_hub=True)


def refused(folder):
    """Whether plain transformers refuses a folder, in a process that does not know tolpack."""
    script = (
        "import sys, transformers\n"
        "for loading in ('AutoModelForCausalLM', 'AutoModel'):\n"
        "    try:\n"
        "        getattr(transformers, loading).from_pretrained(sys.argv[1])\n"
        "    except (ValueError, OSError):\n"
        "        continue\n"
        "    sys.exit('it is loaded')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], check=False)
    return done.returncode == 0


def test_saving_that_fails_leaves_no_folder_that_loads(saved, tmp_path, monkeypatch):
    """Without the pack's file nothing is written; weights that cannot be written leave a
    configuration that is refused already.
    """
    folder, pack = saved["gemma3n"]
    own = tmp_path / "own.tolpack"
    shutil.copyfile(pack, own)
    model = tolpack.hf.load(folder, own)[0]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", full)
        with pytest.raises(OSError, match="No space left"):
            model.save_pretrained(tmp_path / "full")
    _, config = read(tmp_path / "full")
    assert "import tolpack.hf" in config["transformers_weights"]
    assert "to_json_file" not in vars(model.config)
    model.save_pretrained(tmp_path / "again")  # what failed has changed nothing
    assert is_mounted(stock(tmp_path / "again"))
    tolpack.build(folder, own, bits=8, force=True)
    with pytest.raises(FileAccessError, match="is no longer the pack that is mounted: save while"):
        model.save_pretrained(tmp_path / "other")
    own.unlink()
    with pytest.raises(FileAccessError, match="the mounted pack cannot be copied"):
        model.save_pretrained(tmp_path / "gone")
    for name in ("other", "gone"):
        assert list((tmp_path / name).iterdir()) == []


@pytest.mark.parametrize(
    ("family", "part"), [("gemma3n", "model"), ("gemma4_multimodal", "model.language_model")]
)
def test_parts_of_a_mounted_model_are_saved_with_the_pack(saved, tmp_path, family, part):
    """What plain loading refuses, and what gives the same values with tolpack."""
    from transformers import AutoModel

    model = tolpack.hf.load(*saved[family])[0].get_submodule(part)
    model.save_pretrained(tmp_path / "part")
    assert refused(tmp_path / "part")
    again = AutoModel.from_pretrained(tmp_path / "part")
    assert is_mounted(again)
    with torch.no_grad():
        assert torch.equal(again(IDS).last_hidden_state, model(IDS).last_hidden_state)


def test_a_pack_is_not_written_in_place(saved, tmp_path):
    """A model that reads the folder's pack keeps its rows when another is saved there."""
    folder, pack = saved["gemma3n"]
    tolpack.hf.load(folder, pack)[0].save_pretrained(tmp_path / "m")
    reader = stock(tmp_path / "m")
    other = tmp_path / "packs" / pack.name
    other.parent.mkdir()
    tolpack.build(folder, other, bits=4)
    tolpack.hf.load(folder, other)[0].save_pretrained(tmp_path / "m")
    assert torch.equal(logits(reader, IDS), logits(stock(folder), IDS))
    assert (tmp_path / "m" / pack.name).read_bytes() == other.read_bytes()
    assert not torch.equal(logits(stock(tmp_path / "m"), IDS), logits(reader, IDS))


def test_folders_and_other_formats(saved, tmp_path):
    """Subfolders come along; weights in other formats, and hidden files, are left out."""
    tensors, config = read(saved["gemma4"][0])
    folder = write(tmp_path / "m", tensors, config)
    for name in ("chat/a.jinja", "original/consolidated.00.pth", "pytorch_model.bin", ".git/x"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (folder / "loop").symlink_to(folder)
    (folder / "linked.txt").symlink_to(folder / "chat" / "a.jinja")
    result = tolpack.hf.strip(folder, tmp_path / "out", saved["gemma4"][1])
    assert set(result.left_out) == {"original/consolidated.00.pth", "pytorch_model.bin"}
    assert set(contents(tmp_path / "out")) == {
        "a.jinja", "linked.txt", "config.json", "model.safetensors", "gemma4.tolpack"
    }  # fmt: skip
    assert torch.equal(logits(stock(tmp_path / "out"), IDS), logits(stock(folder), IDS))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("qwen4_exp", "the pack has 560 rows of 1 × 8 values, but"),
        (
            "gemma4",
            " and of table 'embed_tokens_per_layer' have a correlation of -?0.[01]",
        ),
    ],
)
def test_packs_of_other_models_are_refused(saved, tmp_path, other, message):
    """Those of another shape, and those whose rows have nothing to do with the table's."""
    with pytest.raises(ConfigError, match=message):
        tolpack.hf.strip(saved["gemma3n"][0], tmp_path / "out", saved[other][1])
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_pack_is_refused(saved, tmp_path):
    """Unless that is not asked."""
    folder, pack = saved["gemma3n"]
    data = bytearray(pack.read_bytes())
    data[-20] ^= 1
    damaged = tmp_path / "damaged.tolpack"
    damaged.write_bytes(data)
    with pytest.raises(ConfigError, match="is damaged in 1 places, which `tolpack verify` lists"):
        tolpack.hf.strip(folder, tmp_path / "out", damaged)
    assert not (tmp_path / "out").exists()


def test_folders_without_a_table_are_refused(saved, stripped, tmp_path):
    """A stripped one, one of another architecture, one of another quantizer, and a file."""
    folder, pack = saved["gemma4"]
    tensors, config = read(folder)
    with pytest.raises(CheckpointError, match="has no tensors of a table: is it stripped already"):
        tolpack.hf.strip(stripped, tmp_path / "out", pack)
    quantized = write(tmp_path / "q", tensors, config | {"quantization_config": {
        "quant_method": "fp8"}})  # fmt: skip
    with pytest.raises(ConfigError, match="quantized by 'fp8' as well"):
        tolpack.hf.strip(quantized, tmp_path / "out", pack)
    llama = write(tmp_path / "l", {"x": torch.zeros(2)}, {"model_type": "llama"})
    with pytest.raises(ConfigError, match="of model_type 'llama' no table is known"):
        tolpack.hf.strip(llama, tmp_path / "out", pack)
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        tolpack.hf.strip(tmp_path / "l" / "model.safetensors", tmp_path / "out", pack)


def test_nothing_is_overwritten(saved, tmp_path):
    """Neither the input, nor what is there; ``force`` replaces only what `strip` wrote."""
    folder, pack = saved["gemma3n"]
    for output in (folder, folder / "new", folder.parent):
        with pytest.raises(ConfigError, match="overlap: give another folder"):
            tolpack.hf.strip(folder, output, pack, force=True)
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(FileAccessError, match="is there: use --force to replace it"):
        tolpack.hf.strip(folder, out, pack)
    with pytest.raises(FileAccessError, match="is not a folder that strip wrote"):
        tolpack.hf.strip(folder, out, pack, force=True)
    assert (out / "precious").exists()
    tolpack.hf.strip(folder, tmp_path / "new", pack)
    tolpack.hf.strip(folder, tmp_path / "new", pack, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "out"]
    model = stock(tmp_path / "new")
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(FileAccessError, match="is not a folder that strip wrote"):
        tolpack.hf.strip(folder, tmp_path / "tuned", pack, force=True)
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with pytest.raises(FileAccessError, match="is a link: give the folder .*new itself"):
        tolpack.hf.strip(folder, tmp_path / "link", pack, force=True)


def test_force_loses_no_file_of_another(saved, tmp_path):
    """A file that was added, and a folder that has the name to which the old one would move."""
    folder, pack = saved["gemma3n"]
    out = tmp_path / "out"
    renamed = tmp_path / "other.tolpack"
    shutil.copyfile(pack, renamed)
    tolpack.hf.strip(folder, out, renamed)
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("x")
    with pytest.raises(FileAccessError, match=r"out holds notes/mine.txt, which strip does not"):
        tolpack.hf.strip(folder, out, pack, force=True)
    assert (out / "notes" / "mine.txt").read_text() == "x"
    shutil.rmtree(out / "notes")
    (tmp_path / "out.old").mkdir()
    with pytest.raises(FileAccessError, match=r"out.old is in the way: rename it"):
        tolpack.hf.strip(folder, out, pack, force=True)
    assert (tmp_path / "out.old").is_dir()
    tolpack.hf.strip(folder, tmp_path / "new", pack)
    (tmp_path / "new.old").mkdir()
    shutil.rmtree(tmp_path / "new")
    tolpack.hf.strip(folder, tmp_path / "new", pack)
    assert (tmp_path / "new.old").is_dir()
    (tmp_path / "out.old").rmdir()
    tolpack.hf.strip(folder, out, pack, force=True)
    assert not (out / "other.tolpack").exists()


def test_a_replacement_that_fails_is_undone(saved, tmp_path, monkeypatch):
    """The old folder has its name again; one that cannot be removed is named."""
    folder, pack = saved["gemma3n"]
    out = tmp_path / "out"
    tolpack.hf.strip(folder, out, pack)
    before, rename, rmtree = contents(out), os.rename, shutil.rmtree

    def second_fails(source, target):
        if str(source).endswith(".partial"):
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    def no_old(path, **options):
        if str(path).endswith(".old"):
            raise PermissionError(13, "Permission denied")
        rmtree(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(stripping.os, "rename", second_fails)
        with pytest.raises(FileAccessError, match="cannot write .*out: Permission denied"):
            tolpack.hf.strip(folder, out, pack, force=True)
    assert contents(out) == before
    assert os.listdir(tmp_path) == ["out"]
    monkeypatch.setattr(stripping.shutil, "rmtree", no_old)
    with pytest.raises(FileAccessError, match=r"is written, but .*out.old, which it replaces"):
        tolpack.hf.strip(folder, out, pack, force=True)
    assert (tmp_path / "out.old").is_dir()
    assert contents(out) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "chat.jinja"])
def test_packs_named_as_other_files_are_refused(saved, tmp_path, name):
    """By `strip` and by ``save_pretrained``, before they are written over or loaded as weights."""
    folder, pack = saved["gemma4"]
    source = shutil.copytree(folder, tmp_path / "m")
    (source / "chat.jinja").write_text("x")
    renamed = tmp_path / "packs" / name
    renamed.parent.mkdir()
    shutil.copyfile(pack, renamed)
    with pytest.raises(ConfigError, match="rename"):
        tolpack.hf.strip(source, tmp_path / "out", renamed)
    assert not (tmp_path / "out").exists()
    if name != "chat.jinja":
        with pytest.raises(ConfigError, match="rename it"):
            tolpack.hf.load(folder, renamed)[0].save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()


def test_the_pack_of_a_folder_has_its_id(saved, stripped, tmp_path):
    """Another pack of the same shape in its place is refused; one that is given is taken."""
    folder = shutil.copytree(stripped, tmp_path / "m")
    other = tolpack.build(saved["gemma3n"][0], tmp_path / "other.tolpack", bits=8).path
    shutil.copyfile(other, folder / "gemma3n.tolpack")
    for loading in (stock, tolpack.hf.load):
        with pytest.raises(ConfigError, match="it is another pack than the folder was written"):
            loading(folder)
    assert is_mounted(tolpack.hf.load(folder, other)[0])


def test_a_quantization_config_beside_that_of_the_folder_is_refused(saved, stripped):
    """Transformers would take the folder's pack; the error says what takes another."""
    given = tolpack.hf.TolpackConfig(saved["gemma3n"][1])
    with pytest.raises(ValueError, match=r"another pack: tolpack.hf.load\(folder, pack\)"):
        stock(stripped, quantization_config=given)


@pytest.mark.parametrize("family", ["gemma3n", "gemma4", "qwen4_exp"])
def test_missing_weights_are_refused(saved, tmp_path, family):
    """`load` names them, where transformers fills them with random values."""
    tensors, config = read(saved[family][0])
    name = next(one for one in tensors if one.endswith("norm.weight"))
    del tensors[name]
    folder = write(tmp_path / "m", tensors, config)
    with pytest.raises(CheckpointError, match=rf"lacks {name} of "):
        tolpack.hf.load(folder, saved[family][1])


def test_a_folder_appears_only_when_it_is_complete(saved, tmp_path, monkeypatch):
    """A full disk leaves nothing, and what was there stays; so does a folder in the way."""
    folder, pack = saved["gemma3n"]
    tolpack.hf.strip(folder, tmp_path / "out", pack)
    before = contents(tmp_path / "out")

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stripping.os, "fsync", full)
        with pytest.raises(FileAccessError, match="cannot write .*out: No space left on device"):
            tolpack.hf.strip(folder, tmp_path / "out", pack, force=True)
    assert contents(tmp_path / "out") == before
    assert os.listdir(tmp_path) == ["out"]
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(FileAccessError, match="another strip writes it, or one that was killed"):
        tolpack.hf.strip(folder, tmp_path / "out", pack, force=True)


def test_names_of_packs_in_a_config_stay_in_the_folder(stripped, tmp_path):
    """A ``config.json`` from elsewhere cannot name a file outside its folder."""
    tensors, config = read(stripped)
    for name in ("../p.tolpack", "/etc/passwd", 3, ""):
        config["quantization_config"]["pack"] = name
        folder = write(tmp_path / "m", tensors, config)
        with pytest.raises(ConfigError, match="expected the name of a file in the model's folder"):
            tolpack.hf.load(folder)
    config["quantization_config"]["pack"] = "none.tolpack"
    with pytest.raises(FileAccessError, match=r"none.tolpack"):
        stock(write(tmp_path / "m", tensors, config))


def test_command(saved, tmp_path):
    """``tolpack strip`` prints a line, or JSON, and its errors in one line."""
    folder, pack = saved["gemma4"]
    command = ["strip", str(folder), "-o", str(tmp_path / "out"), "--pack", str(pack)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert f"of which {pack.name} takes" in done.output
    done = CliRunner().invoke(main, [*command, "--force", "--no-verify", "--json"])
    assert json.loads(done.stdout)["removed_tensors"] == [f"model.{PLE}"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1


def test_command_without_transformers(saved):
    """It says what to install."""
    folder, pack = saved["gemma4"]
    script = (
        "import sys\n"
        "sys.modules['transformers'] = None\n"
        "from tolpack.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = ["strip", str(folder), "-o", str(folder) + "-out", "--pack", str(pack)]
    done = subprocess.run(
        [sys.executable, "-c", script, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == ("Error: this command needs transformers: pip install 'tolpack[hf]'\n")
