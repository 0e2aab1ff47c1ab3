"""The parsers of what is not a pack: small files that they read, and what must hold for any others.

A check returns ``"good"`` or ``"refused"``, ``"contained"`` if a library died of the file in its
own process, and raises if a promise is broken. What is good is held against another reader, where
there is one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import h5py
import input_edits
import numpy as np
import torch
from safetensors.torch import save
from tokenizer_seeds import tokenizer_seeds

from tolpack.calibration import metrics_cache
from tolpack.calibration.loss_metrics import LossMetrics
from tolpack.errors import TolpackError
from tolpack.model import text
from tolpack.runtime.scratch import Scratch
from tolpack.runtime.worker_process import WorkerProcess
from tolpack.sources.arrays import hdf5
from tolpack.sources.arrays.array_table import ArrayTable
from tolpack.sources.arrays.npy import read_counts, read_npy
from tolpack.sources.checkpoint.config import parse_config, read_config
from tolpack.sources.checkpoint.key_map import match, read_key_map
from tolpack.sources.checkpoint.safetensors_file import SafetensorsFile
from tolpack.sources.checkpoint.shards import open_store
from tolpack.sources.checkpoint.torch_file import TorchFile
from tolpack.sources.gguf.open_gguf import open_gguf

DEMO = Path(__file__).parents[1] / "tolpack" / "demo" / "model"
CONFIG: dict[str, Any] = {
    "model_type": "memoryllm", "vocab_size": 6, "hidden_size": 4, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "memory_intermediate_size": 3,
    "norm": "rmsnorm", "rms_norm_eps": 1e-5, "rope_theta": 100.0, "rope_interleaved": False,
    "hidden_act": "silu", "tie_word_embeddings": True, "head_dim": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "rope_scaling": None,
}  # fmt: skip
TENSORS = {
    "embed_tokens.weight": torch.arange(24.0).reshape(6, 4),
    "layers.0.memory_layernorm.weight": torch.ones(4, dtype=torch.bfloat16),
}
KEY_MAP = b"""rope_interleaved = true
ignore = [ "blocks.{N}.router.*" ]
[tensors]
"wte.weight" = "embed_tokens.weight"
"blocks.{N}.w12.weight" = [ "layers.{N}.memory_mlp.gate_proj.weight",
 "layers.{N}.memory_mlp.up_proj.weight" ]
"blocks.{N}.w3.weight" = { to = "layers.{N}.memory_mlp.down_proj.weight", transpose = true }
"""
NAMES = ("wte.weight", "blocks.0.w12.weight", "blocks.0.w3.weight", "blocks.0.router.gate",
         "a" * 400)  # fmt: skip
TEXT = "Numbers: 12 + 3.5 = 15.5; naïve café, 日本語 🙂\r\n\tend aaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"


class Broken(AssertionError):
    """A promise that a parser did not keep."""


class Shared(WorkerProcess):
    """Children that take one file after another: to start one for each takes far longer."""

    children: Mapping[str, WorkerProcess] = {
        name: WorkerProcess(name) for name in (hdf5._WORKER, text._WORKER)
    }

    def ask(self, request: Any) -> Any:
        """See `WorkerProcess.ask`; the first request opens this one's file."""
        child = self.children[self._module]
        if self._opening is not None:
            opening, self._opening = self._opening, None
            child.ask(opening)
        return child.ask(request)


@dataclass(frozen=True, slots=True)
class Parser:
    """A parser: `seeds(folder)`, `check(path)` of a file called `name`, and how to change one."""

    name: str
    seeds: Callable[[Path], Sequence[bytes]]
    check: Callable[[Path], str]
    changes: tuple[input_edits.Change, ...] = field(default=(input_edits.change_bytes,))


def verdict(check: Callable[[Path], object]) -> Callable[[Path], str]:
    """Make a check of what returns, or raises an error of tolpack's."""

    def checked(path: Path) -> str:
        try:
            check(path)
        except TolpackError as error:
            words = ("crashed", "computing time", "hangs")
            return "contained" if any(word in str(error) for word in words) else "refused"
        return "good"

    return checked


def npy_seeds(folder: Path) -> list[bytes]:
    """Arrays of several dtypes, shapes and orders."""
    path = folder / "seed.npy"
    found = []
    for array in (np.arange(12, dtype="<f4").reshape(3, 4), np.arange(6, dtype="<i8"),
                  np.asfortranarray(np.arange(12.0).reshape(3, 4)), np.zeros((0, 4), "<f2"),
                  np.ones((2, 3, 2), "<f2"), np.arange(4, dtype="u1"), np.array(3)):  # fmt: skip
        np.save(path, array)
        found.append(path.read_bytes())
    return found


def check_npy(path: Path) -> None:
    """Both ways of reading agree with numpy."""
    found, mapped = read_npy(path, "array"), read_npy(path, "array", mapped=True)
    expected = np.load(path, allow_pickle=False)
    for one in (found, mapped):
        same = one.dtype == expected.dtype and one.shape == expected.shape
        if not same or one.tobytes() != expected.tobytes():
            raise Broken("another array than numpy's")
    with contextlib.suppress(TolpackError):
        read_counts(path, 6)


def hdf5_seeds(folder: Path) -> list[bytes]:
    """Datasets contiguous, chunked, compressed, in groups, of both generations of the format."""
    table, found, path = np.arange(24, dtype="f4").reshape(3, 8), [], folder / "seed.h5"
    for version in ("earliest", "latest"):
        for options in ({}, {"chunks": (1, 8)}, {"chunks": (2, 4), "compression": "gzip",
                        "shuffle": True, "fletcher32": True}):  # fmt: skip
            with h5py.File(path, "w", libver=version) as file:
                file.create_dataset("group/table", data=table, **options)
                file["link"] = h5py.SoftLink("/group/table")
                file.attrs["made"] = "here"
            found.append(path.read_bytes())
    for link in (h5py.ExternalLink("other.h5", "/t"), None):
        with h5py.File(path, "w") as file:
            if link is None:
                file.create_dataset("t", (3, 8), "f4", external=[("/etc/passwd", 0, 96)])
            else:
                file["t"], file["x"] = table, link
        found.append(path.read_bytes())
    return found


def check_hdf5(path: Path) -> None:
    """The dataset opens, and all its rows are read, or as many as are of a small table."""
    array = hdf5.open_hdf5(path)
    table = ArrayTable(array, 2 if len(array.shape) == 2 else None)
    table.field_rows(table.num_layers - 1)(np.arange(min(table.vocab_size, 64), dtype=np.int64))


def safetensors_seeds(folder: Path) -> list[bytes]:
    """Files of one, two and no tensors."""
    one = {"a": torch.arange(6.0).reshape(2, 3)}
    return [save(TENSORS, {"format": "pt"}), save(one), save({}), save({"b": torch.zeros(0, 2)})]


def check_safetensors(path: Path) -> None:
    """Tensors are those that the header says, decoded by hand."""
    file = SafetensorsFile(path)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    infos = file.infos()
    if infos.keys() != header.keys():
        raise Broken("other names than the header's")
    for name, entry in header.items():
        tensor = file.load(name)
        begin, end = entry["data_offsets"]
        plain = tensor.contiguous().view(torch.uint8) if tensor.numel() else torch.zeros(0)
        if bytes(plain.flatten().tolist()) != data[start + begin : start + end]:
            raise Broken("another tensor than the file's")
        if infos[name].shape != tuple(entry["shape"]) or tuple(tensor.shape) != infos[name].shape:
            raise Broken("another shape than the header's")


def gguf_seeds(folder: Path) -> list[bytes]:
    """A table of floats and one of blocks, among metadata of several types."""
    path, found = folder / "seed.gguf", []
    for kind, width in (("F32", 4), ("Q8_0", 32), ("Q4_1", 32), ("F16", 6)):
        writer = gguf.GGUFWriter(path, "gemma3n")
        writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
        writer.add_array("gemma3n.ple.layers", [1, 2])
        writer.add_uint32("gemma3n.block_count", 2)
        writer.add_float32("f", 0.5)
        values = np.arange(5.0 * width, dtype="<f4").reshape(5, width)
        quantized = gguf.GGMLQuantizationType[kind]
        stored = gguf.quants.quantize(values, quantized)
        writer.add_tensor("x", stored, raw_dtype=quantized)
        writer.add_tensor("y", np.ones((3, 2), "<f4"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found.append(path.read_bytes())
    return found


def check_gguf(path: Path) -> None:
    """Rows are those that the gguf package reads, where it takes the file too."""
    (table,) = open_gguf(path, "x")
    rows = table.field_rows(0)(np.arange(table.rows))
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError):
        return  # such as a name that is not UTF-8, which it reads and tolpack does not use
    tensor = next(one for one in reader.tensors if one.name == "x")
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if rows.tobytes() != expected.astype("<f4").tobytes():
        raise Broken("other rows than the package's")


def pt_seeds(folder: Path) -> list[bytes]:
    """State dicts with and without a config, in both formats of torch."""
    path, found = folder / "seed.pt", []
    shared = {"a": TENSORS["embed_tokens.weight"], "b": TENSORS["embed_tokens.weight"][2:]}
    for value in ({"model": TENSORS, "config": CONFIG}, TENSORS, shared):
        for modern in (True, False):
            torch.save(value, path, _use_new_zipfile_serialization=modern)
            found.append(path.read_bytes())
    return found


def check_pt(path: Path) -> None:
    """Mapped tensors have the values of those that are read without a map."""
    file = TorchFile(path)
    plain = torch.load(path, weights_only=True, map_location="cpu")
    for key in ("model", "state_dict", "model_state_dict", "module"):
        if isinstance(plain.get(key), dict):
            plain = plain[key]
            break
    for name, info in file.infos().items():
        if info.dtype in ("float32", "float16", "bfloat16"):
            ours, theirs = file.load(name).contiguous(), plain.get(name)
            if theirs is not None and not torch.equal(ours.nan_to_num(), theirs.nan_to_num()):
                raise Broken("other values than without a map")
    if file.config is not None:
        parse_config(file.config)


def check_tokenizer(path: Path) -> None:
    """A text is encoded, and tokens have texts."""
    tokenizer = text.TextTokenizer(path)
    ids = tokenizer.encode(TEXT).tolist()
    if len(tokenizer.texts([*ids[:8], -1, 0, 2**32, 2**40])) != len(ids[:8]) + 4:
        raise Broken("not a text for each token")


def check_text(path: Path) -> None:
    """Any bytes are a text of valid ids, or none."""
    ids = text.read_token_ids(path, 4096, path.parent / "tokenizer.json")
    if ids.min() < 0 or ids.max() >= 4096:
        raise Broken("ids outside the vocabulary")


def text_seeds(folder: Path) -> list[bytes]:
    """Texts of several scripts."""
    (folder / "tokenizer.json").write_bytes(tokenizer_seeds()[1])
    return [TEXT.encode(), "日本語 🙂 עברית".encode(), b"\xef\xbb\xbfabc\r\n", b"a" * 5000]


def check_config(path: Path) -> None:
    """A config is read, and its heads fit or are refused."""
    config = read_config(path)
    config.head_dim()
    repr(config.unsupported)


def check_key_map(path: Path) -> None:
    """A map is read and matched."""
    match(NAMES, read_key_map(path))


def index_seeds(folder: Path) -> list[bytes]:
    """Indexes of two shards, which are written beside."""
    for number, name in enumerate(TENSORS, 1):
        shard = {name: TENSORS[name]}
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(save(shard))
    names = {name: f"model-0000{n}-of-00002.safetensors" for n, name in enumerate(TENSORS, 1)}
    return [json.dumps({"metadata": {"total_size": 104}, "weight_map": names}).encode(),
            json.dumps({"weight_map": names}, indent=1).encode()]  # fmt: skip


CALIBRATION = [[np.arange(16.0).reshape(4, 4) + n for n in range(count)] for count in (2, 2, 1)]
SLOPE = -0.125


def calibration_seeds(folder: Path) -> list[bytes]:
    """A calibration of three layers, as it is kept."""
    os.environ["TOLPACK_CACHE"] = str(folder)
    scratch = Scratch(folder, 1 << 30)
    layers = [[scratch.spill(metric) for metric in row] for row in CALIBRATION]
    metrics, crossed = (row[0] for row in layers), (tuple(row[1:]) for row in layers)
    path = metrics_cache.keep(bytes(16), LossMetrics(tuple(metrics), tuple(crossed), SLOPE))
    if path is None:
        raise Broken("a calibration could not be kept")
    return [path.read_bytes()]


def check_calibration(path: Path) -> str:
    """What is given back is what was kept, or nothing."""
    kept = path.parent / f"calibration-{bytes(16).hex()}.metrics"
    os.replace(path, kept)
    found = metrics_cache.load(bytes(16), Scratch(path.parent, 1 << 30))
    if found is None:
        return "refused"
    layers = [[own, *above] for own, above in zip(found.metrics, found.crossed)]
    loaded = [[metric.load().tolist() for metric in row] for row in layers]
    expected = [[metric.tolist() for metric in row] for row in CALIBRATION]
    if (loaded, found.count_slope) != (expected, SLOPE):
        raise Broken("another calibration")
    return "good"


def config_seeds(folder: Path) -> list[bytes]:
    """The configs of a tiny model and of the demo."""
    return [json.dumps(CONFIG).encode(), (DEMO / "config.json").read_bytes()]


_BYTES, _JSON = input_edits.change_bytes, input_edits.change_json
PARSERS: dict[str, Parser] = {
    "npy": Parser("x.npy", npy_seeds, verdict(check_npy), (_BYTES, input_edits.change_npy)),
    "hdf5": Parser("x.h5", hdf5_seeds, verdict(check_hdf5)),
    "safetensors": Parser("x.safetensors", safetensors_seeds, verdict(check_safetensors),
                          (_BYTES, input_edits.change_safetensors, input_edits.change_safetensors)),
    "gguf": Parser("x.gguf", gguf_seeds, verdict(check_gguf)),
    "pt": Parser("x.pt", pt_seeds, verdict(check_pt),
                 (_BYTES, input_edits.change_zip, input_edits.change_zip)),
    "tokenizer": Parser("x.json", lambda _: tokenizer_seeds(), verdict(check_tokenizer),
                        (_BYTES, _JSON, _JSON, _JSON)),
    "text": Parser("x.txt", text_seeds, verdict(check_text), (_BYTES, input_edits.change_words)),
    "config": Parser("x.json", config_seeds, verdict(check_config), (_BYTES, _JSON, _JSON)),
    "key-map": Parser("x.toml", lambda _: [KEY_MAP], verdict(check_key_map),
                      (_BYTES, input_edits.change_words, input_edits.change_words)),
    "index": Parser("model.safetensors.index.json", index_seeds,
                    verdict(lambda path: open_store(path.parent)), (_BYTES, _JSON, _JSON)),
    "calibration": Parser("x.metrics", calibration_seeds, check_calibration),
}  # fmt: skip


def prepare() -> None:
    """Let one child serve many files, for speed."""
    hdf5.WorkerProcess = text.WorkerProcess = Shared  # type: ignore[misc, attr-defined]


def clear(folder: Path) -> None:
    """Remove what was made."""
    shutil.rmtree(folder, ignore_errors=True)
