"""Folders whose files are to be there after the machine has stopped."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, as ``fsync`` makes a file's bytes. Raises ``OSError``."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
