"""The metadata of a checkpoint, read without orbax, so that no process waits for another and no device is used."""

import json
import pathlib
from typing import Any

METADATA_FILE = pathlib.Path("metadata", "metadata")  # below a checkpoint's folder, as orbax names it


def stored_metadata(folder: pathlib.Path) -> dict[str, Any] | None:
    """The metadata of the checkpoint in a folder, as JSON values; None if they cannot be read."""
    try:
        content = json.loads((folder / METADATA_FILE).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
