"""The ZIP archive that ``torch.save`` writes, checked before torch reads it.

Torch inflates whatever is deflated, and maps tensors as if nothing were: an archive that it did not
write itself takes a thousand times its size in memory, or gives wrong values.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from tolpack.files import open_stream

_MAGIC = b"PK\3\4"
_MAX_ENTRIES = 1_000_000


def check_archive(path: Path) -> None:
    """Check that an archive, if it is one, stores its entries as they are, each of them once.

    Raises
    ------
    OSError
        The file cannot be read, or is no regular one.
    ValueError
        It is damaged, or was not written by torch.
    """
    with open_stream(path) as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return  # the format before torch 1.6, or none
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except Exception as error:  # noqa: BLE001 (on damage it raises much beside BadZipFile)
            raise ValueError(f"its archive is damaged ({error}): copy it anew") from error
    names = {entry.filename for entry in entries}
    if len(names) != len(entries):
        raise ValueError("an entry of its archive stands there twice: save it anew with torch.save")
    stored = sum(entry.file_size for entry in entries)
    if stored > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(
            "entries of its archive are compressed or overlap, which torch.save never does: save "
            "it anew"
        )
