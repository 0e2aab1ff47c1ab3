"""List the part files of a folder that its manifest does not name, and remove them if asked.

    python examples/clean_parts.py FOLDER [--delete]

FOLDER is a path or a URL. Builds that ended early leave part files and jobs behind, and so does a
build that replaced another one's manifest. The next build of the same input and settings would use
them again. Do not remove files while a build is writing to the folder.
"""

from __future__ import annotations

import argparse

from tolpack.container.parts.manifest import PART_SUFFIX
from tolpack.container.parts.parts_sink import named_files
from tolpack.storage.folder import Folder
from tolpack.storage.local_folder import UNFINISHED, LocalFolder
from tolpack.storage.locations import open_folder
from tolpack.workspace.jobs import JOB_SUFFIX, SUMS_SUFFIX


def main() -> None:
    """List, or remove."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--delete", action="store_true")
    arguments = parser.parse_args()
    folder = open_folder(arguments.folder)
    for name in unnamed_files(folder):
        if arguments.delete and isinstance(folder, LocalFolder):
            (folder.path / name).unlink(missing_ok=True)
        elif arguments.delete:
            folder.delete(name)
        print(name)


def unnamed_files(folder: Folder) -> list[str]:
    """Return the names of part files and jobs that the manifest, if there is one, does not name."""
    named, endings = named_files(folder), (PART_SUFFIX, JOB_SUFFIX, SUMS_SUFFIX)
    names = folder.names()
    if isinstance(folder, LocalFolder) and folder.path.is_dir():
        names += sorted(one.name for one in folder.path.glob(f"{UNFINISHED}*"))
    return [
        name for name in names
        if name.startswith(UNFINISHED) or (name.endswith(endings) and name not in named)
    ]  # fmt: skip


if __name__ == "__main__":
    main()
