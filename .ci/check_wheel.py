"""Check that a wheel installs one top-level name, and carries the package's data."""

import sys
import zipfile

names = zipfile.ZipFile(sys.argv[1]).infolist()
top = {entry.filename.split("/")[0] for entry in names}
unexpected = {name for name in top if name != "tolpack" and not name.endswith(".dist-info")}
model = [entry for entry in names if entry.filename.startswith("tolpack/demo/model/")]
size = sum(entry.file_size for entry in model)
maps = [entry for entry in names if entry.filename.startswith("tolpack/sources/checkpoint/maps/")]
report = [entry for entry in names if entry.filename.startswith("tolpack/report/page.")]
tasks = [entry for entry in names if entry.filename.startswith("tolpack/lm_eval/tasks/")]
if (
    unexpected
    or not model
    or size > 6_000_000
    or len(maps) < 5
    or len(report) != 12
    or len(tasks) != 4
):
    sys.exit(
        f"wheel: unexpected {sorted(unexpected)}, demo model {len(model)} files {size} bytes, "
        f"{len(maps)} key maps, {len(report)} parts of the report's page, {len(tasks)} tasks"
    )
print(f"wheel: one name, {len(maps)} key maps, demo model {size} bytes")
