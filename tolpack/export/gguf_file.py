"""GGUF files, written row by row: the ``gguf`` package writes the header, and rows follow here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np

from tolpack.errors import ConfigError
from tolpack.export.tensor_files import FlatFile, Metadata, Tensor, texts

# Types as GGML calls them.
_TYPES = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0",
}  # fmt: skip
# llama.cpp refuses longer names (GGML_MAX_NAME).
_MAX_NAME = 63


class GGUFFile(FlatFile):
    """A ``.gguf`` of the architecture ``tolpack``; its metadata are strings ``tolpack.KEY``."""

    choices: ClassVar[tuple[str, ...]] = ("stored",)
    dtypes: ClassVar[tuple[str, ...]] = tuple(_TYPES)
    holds_several: ClassVar[bool] = True

    def __init__(self, file: BinaryIO, tensors: Sequence[Tensor], metadata: Metadata) -> None:
        for tensor in tensors:
            if len(tensor.name) > _MAX_NAME:
                raise ConfigError(
                    f"the tensor's name {tensor.name!r} has {len(tensor.name)} characters, and "
                    f"GGUF allows {_MAX_NAME}: use .safetensors"
                )
        alignment = _write_header(Path(file.name), tensors, metadata)
        size = os.fstat(file.fileno()).st_size
        super().__init__(file, tensors, -(-size // alignment) * alignment, alignment)

    def finish(self, metadata: Metadata) -> None:
        """See `TensorFile.finish`."""
        self._file.truncate(self.end)


def _write_header(path: Path, tensors: Sequence[Tensor], metadata: Metadata) -> int:
    """Write all that stands before the data, and return what these are aligned to.

    The package opens the file by its name; it is locked already.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError("writing .gguf needs gguf: pip install 'tolpack[gguf]'") from error
    writer = gguf.GGUFWriter(path, "tolpack")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, text in texts(metadata).items():
        writer.add_string(f"tolpack.{key}", text)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[_TYPES[tensor.dtype]]
        shape = (tensor.shape[0], tensor.row_bytes)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), tensor.nbytes, kind)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    return int(writer.data_alignment)
