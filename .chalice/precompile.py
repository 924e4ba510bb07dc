"""Put compiled modules into the zip that `chalice package` made: `precompile.py deployment.zip`.

On Lambda the code's folder cannot be written to, so that without this every cold start compiles
every module: more than half of its time. Run it with the Python version that the functions use.
"""

import sys
import tempfile
from compileall import compile_dir
from pathlib import Path
from py_compile import PycInvalidationMode
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo


def precompile(package: Path) -> None:
    """Compile each module in the zip and add it, unchecked, since sources there never change."""
    with tempfile.TemporaryDirectory() as folder, ZipFile(package, "a", ZIP_DEFLATED) as file:
        file.extractall(folder)
        compile_dir(
            folder,
            quiet=1,
            stripdir=folder,
            prependdir="/var/task",
            invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
        )
        for path in sorted(Path(folder).rglob("__pycache__/*.pyc")):
            entry = ZipInfo(str(path.relative_to(folder)))
            entry.compress_type = ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            file.writestr(entry, path.read_bytes())


if __name__ == "__main__":
    precompile(Path(sys.argv[1]))
