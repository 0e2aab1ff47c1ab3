"""Small GGUF files: written by the gguf package, and by hand where it would refuse."""

import struct

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

QUANTIZED = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
# Types that the package dequantizes and does not quantize.
DEQUANTIZED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ3_S",
               "IQ1_M", "TQ1_0", "TQ2_0", "MXFP4")  # fmt: skip


def quantize(values, name):
    """Return float32 (rows, width) as the package quantizes it: any dtype, (rows, …)."""
    return gguf.quants.quantize(values, GGMLQuantizationType[name])


def dequantize(stored, name):
    """Return float32 (rows, width): the reference of all tests here."""
    return gguf.quants.dequantize(np.ascontiguousarray(stored), GGMLQuantizationType[name])


def random_blocks(name, rows, width, seed=0):
    """Return random blocks of a type, uint8 (rows, bytes), whose values are finite."""
    rng = np.random.default_rng(seed)
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (rows * width // values, size), np.uint8)
    with np.errstate(all="ignore"):
        while True:
            bad = ~np.isfinite(dequantize(blocks, name)).all(axis=1)
            if not bad.any():
                return blocks.reshape(rows, -1)
            blocks[bad] = rng.integers(0, 256, (int(bad.sum()), size), np.uint8)


def write(path, tensors, arch="llama", numbers=None, **options):
    """Write `tensors`, name → (stored, type), with `numbers` of the metadata, or lists of them."""
    writer = gguf.GGUFWriter(path, arch, **options)
    writer.add_array("tokenizer.ggml.tokens", ["<pad>", "a", "b"])
    writer.add_array("tokenizer.ggml.scores", [0.0, 1.0, 2.0])
    writer.add_string("tokenizer.chat_template", "x" * 5000)
    for key, value in (numbers or {}).items():
        if isinstance(value, list):
            lists = GGUFValueType.ARRAY, GGUFValueType.UINT64
            writer.add_key_value(key, value, *lists)
        else:
            writer.add_uint32(key, value)
    for name, (stored, kind) in tensors.items():
        writer.add_tensor(name, stored, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def string(text):
    """Return a string as the format has it."""
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, value):
    """Return a key of the metadata, with a value that is bytes already."""
    return string(key) + struct.pack("<I", kind) + value


def tensor(name, dims, kind, offset):
    """Return what a header says of a tensor; `dims` as GGML has them, fastest first."""
    sizes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return string(name) + sizes + struct.pack("<IQ", kind, offset)


def by_hand(pairs=(), tensors=(), data=b"", version=3, counts=None):
    """Return the bytes of a file: the data are aligned to 32 bytes."""
    many, few = counts or (len(tensors), len(pairs))
    header = b"GGUF" + struct.pack("<IQQ", version, many, few) + b"".join((*pairs, *tensors))
    return header + bytes(-len(header) % 32) + data
