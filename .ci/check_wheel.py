"""Check that a wheel installs one top-level name and carries the demo model within its limit."""

import sys
import zipfile

names = zipfile.ZipFile(sys.argv[1]).infolist()
top = {entry.filename.split("/")[0] for entry in names}
unexpected = {name for name in top if name != "tolpack" and not name.endswith(".dist-info")}
model = [entry for entry in names if entry.filename.startswith("tolpack/demo/model/")]
size = sum(entry.file_size for entry in model)
if unexpected or not model or size > 6_000_000:
    sys.exit(f"wheel: unexpected {sorted(unexpected)}, demo model {len(model)} files {size} bytes")
print(f"wheel: one name, demo model {size} bytes")
