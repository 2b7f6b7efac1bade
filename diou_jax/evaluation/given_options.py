"""The options with which a run was evaluated, where they differ from its config: rows of metrics keep them."""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from diou_jax.nested_config import flatten, overwrite
from diou_jax.workdir.run_config import restore_config

# Their place in a row.
OPTIONS = "options"


def given_options(workdir: str | os.PathLike, config: ConfigDict) -> dict[str, Any]:
    """The options of `config`, by dotted name, that differ from those of the run in `workdir`; empty without a run.

    They are values of JSON, a float that is not finite as text.
    """
    run = restore_config(workdir)
    if run is None:
        return {}
    before, now = (_of_json(flatten(one)) for one in (run, config))
    return {name: _text(value) for name, value in now.items() if name not in before or value != before[name]}


def with_given_options(run: ConfigDict, row: Mapping[str, Any]) -> ConfigDict:
    """The config of the evaluation that wrote a row of metrics into the folder of a run with the config `run`."""
    config, given = run.copy_and_resolve_references(), row.get(OPTIONS)
    for name, value in given.items() if isinstance(given, dict) else ():
        *groups, option = name.split(".")
        stored: dict[str, Any] = {option: float(value) if value in ("inf", "-inf", "nan") else value}
        for group in reversed(groups):
            stored = {group: stored}
        overwrite(config, stored)
    return config


def _of_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
