"""The config of a run, kept beside its checkpoints, and the options that may change when the run is resumed."""

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from diou_jax.checkpoint.metadata_file import stored_metadata
from diou_jax.checkpoint.seal import damage
from diou_jax.configs import base
from diou_jax.errors import UserError
from diou_jax.files import replacing
from diou_jax.nested_config import flatten, overwrite
from diou_jax.workdir.metrics_file import set_aside

CONFIG_FILE = "config.json"

# Options that may change when a run is resumed; any other change would make it another run.
FREE = tuple(option.name for option in base.OPTIONS if option.free)

# The values of options that a run's config lacks, since they were added later, as json has them.
_DEFAULTS = {option.name: json.loads(json.dumps(option.default)) for option in base.OPTIONS}


def read_config(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """The config of the run in `workdir`: `config.json` or, if that is missing or damaged, the newest checkpoint's.

    Returns:
      JSON values by section, or None if neither can be read.
    """
    config = _read_file(pathlib.Path(workdir) / CONFIG_FILE)
    return _of_newest_checkpoint(pathlib.Path(workdir)) if config is None else config


def restore_config(workdir: str | os.PathLike) -> ConfigDict | None:
    """The config of the run in `workdir`, with defaults for options newer than the run; None as for `read_config`."""
    stored = read_config(workdir)
    if stored is None:
        return None
    config = base.get_config()
    overwrite(config, stored)
    return config


def keep_config(workdir: str | os.PathLike, config: Mapping[str, Any], *, resuming: bool, write: bool = True) -> None:
    """Writes the resolved config to `workdir`/config.json; for a resumed run, compares it with the run's first.

    Options of `FREE` may differ from one start to the next; the file then gets the new values. Every process of a run
    compares, the first one writes.

    Args:
      workdir: the run's folder.
      config: the resolved config.
      resuming: whether a run is resumed.
      write: whether to write; False only compares.

    Raises:
      UserError: if another option differs (the message names each with both values, and nothing is written), or
        `workdir` cannot be written.
    """
    file = pathlib.Path(workdir) / CONFIG_FILE
    new = json.loads(json.dumps(config))
    if pathlib.Path(workdir).exists() and not pathlib.Path(workdir).is_dir():
        raise UserError(f"{workdir} is a file, not a folder; name another --workdir")
    if resuming:
        before = read_config(workdir)
        if before is not None:
            after = flatten(new)
            defaults = {name: default for name, default in _DEFAULTS.items() if name in after}
            _compare(workdir, defaults | flatten(before), after)
        if jax.process_index() == 0 and write and _read_file(file) is None:
            source = "the newest checkpoint's was compared" if before else "no checkpoint holds one to compare"
            logging.warning("%s is missing or damaged; %s, and it is written anew", file, source)
    if jax.process_index() == 0 and write:
        _write(file, new)


def _compare(workdir, before, after):
    differences = [
        f"{name} was {before.get(name)!r}, now {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and name not in FREE
    ]
    if differences:
        raise UserError(
            f"{workdir} holds a run of another config: {'; '.join(differences)}; use these values, or start another "
            f"run from its weights: another --workdir with --config.init.checkpoint={workdir}"
        )


def _write(file, config):
    try:
        if file.is_dir():
            set_aside(file)
        with replacing(file) as draft, draft.open("w") as stream:
            stream.write(json.dumps(config, indent=2) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error}; name another --workdir") from error


def _read_file(file: pathlib.Path) -> dict[str, Any] | None:
    """The content of a file, or None if it is no JSON object with sections."""
    try:
        content = json.loads(file.read_text()) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    # A few options stand outside sections.
    return content if isinstance(content, dict) and any(isinstance(x, dict) for x in content.values()) else None


def _of_newest_checkpoint(workdir):
    """The config in the newest undamaged checkpoint; no device may be used yet, so that it is read without orbax."""
    folder, seals = workdir / "checkpoints", workdir / "checkpoints.sealed"
    steps = [int(path.name) for path in folder.glob("*") if path.name.isascii() and path.name.isdigit()]
    for step in sorted(steps, reverse=True):
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            if damage(folder / str(step), seals / f"{step}.json") is not None:
                continue
        metadata = stored_metadata(folder / str(step))
        if metadata and isinstance(metadata.get("config"), dict):
            return metadata["config"]
    return None
