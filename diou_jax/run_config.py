"""The config of a run, kept beside its checkpoints: what it was, and what may change when it goes on."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from diou_jax.errors import UserError

CONFIG_FILE = "config.json"

# Options that a run may change when it goes on; everything else would make it another run.
FREE = (
    "init",
    "resnets.imagenet_pretrained_weights",
    "resnets.imagenet_style",
    "test",
    "train.max_bad_steps",
    "train.max_rollbacks",
    "log",
    "checkpoint",
    "data.threads",
    "data.workers",
    "data.prefetch",
    "data.timeout",
    "data.root",
    "data.train_annotations",
    "data.train_images",
    "data.val_annotations",
    "data.val_images",
)


def keep_config(workdir: str | os.PathLike, config: Mapping[str, Any], *, resuming: bool) -> None:
    """Writes the resolved config to `workdir`/config.json; where a run goes on, compares it with the one that is there.

    Options of `FREE` may differ from one start to the next; the file then takes the new values. Every process of a run
    compares, the first one writes.

    Raises:
      UserError: another option differs; names each with both values. Nothing is written then. Or `workdir` cannot be
        written.
    """
    file = pathlib.Path(workdir) / CONFIG_FILE
    new = json.loads(json.dumps(config))
    if resuming and file.exists():
        try:
            before, after = _flatten(json.loads(file.read_text())), _flatten(new)
        except (ValueError, AttributeError) as error:
            raise UserError(f"{file} is not a config: {error}; name another --workdir") from error
        differences = [
            f"{name} was {before.get(name)!r}, now {after.get(name)!r}"
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name) and not any(name == f or name.startswith(f + ".") for f in FREE)
        ]
        if differences:
            raise UserError(
                f"{workdir} holds a run of another config: {'; '.join(differences)}; "
                "use these values or another --workdir"
            )
    elif pathlib.Path(workdir).exists() and not pathlib.Path(workdir).is_dir():
        raise UserError(f"{workdir} is a file, not a folder; name another --workdir")
    if jax.process_index() > 0:
        return
    draft = file.with_suffix(".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(new, indent=2) + "\n")
        os.replace(draft, file)
    except OSError as error:
        raise UserError(f"{workdir} cannot be written: {error}; name another --workdir") from error


def _flatten(config: Mapping, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
