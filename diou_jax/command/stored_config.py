"""The config of an existing run, from which later commands start, and its differences from their configs."""

import os
from collections.abc import Collection

from ml_collections import ConfigDict

from diou_jax.errors import UserError
from diou_jax.nested_config import flatten, to_tuples
from diou_jax.option_groups import NETWORK, SHAPES

# Options beside those of the network that change an evaluation or prediction.
APPLIED = ("model", "test", "predict", "data.source", "data.root", "data.val_annotations", "data.buckets")


def stored_config(workdir: str) -> ConfigDict | None:
    """The config of the run in `workdir`, with defaults for options newer than the run; None if there is no run."""
    if not os.path.isdir(workdir):
        return None
    from diou_jax.workdir.run_config import restore_config  # imported late, since it imports JAX

    return restore_config(workdir)


def check_shapes(run: ConfigDict, config: ConfigDict, workdir: str) -> None:
    """Raises UserError if the network of `config` has other parameters than that of the run."""
    before, now = flatten(run), flatten(config)
    wrong = [f"{name}: {before[name]!r} in the run, {now[name]!r} here" for name in SHAPES if before[name] != now[name]]
    if wrong:
        raise UserError(f"{workdir} holds another network: {'; '.join(wrong)}; leave these options out")


def contradictions(
    run: ConfigDict, given: ConfigDict, *, file: str, explicit: Collection[str], workdir: str
) -> list[str]:
    """Lines that name the differences between a config file and the run, whose values are kept.

    Args:
      run: the config of the run.
      given: the config of the file.
      file: name of the file.
      explicit: options that the command line sets; they are left out.
      workdir: folder of the run.

    Raises:
      UserError: if an option of the network differs.
    """
    before, now = flatten(run), flatten(given)
    different = [
        name
        for name in sorted(before.keys() & now.keys())
        # An option that the file leaves open (None) is no difference.
        if to_tuples(now[name]) not in (None, before[name]) and not _below(name, explicit)
    ]
    network = [name for name in different if _below(name, NETWORK)]
    if network:
        said = "; ".join(f"{name}: {before[name]!r} in the run, {now[name]!r} in {file}" for name in network)
        raise UserError(
            f"{workdir} holds another network than {file}: {said}; leave --config out to take the run's own"
        )
    return [
        f"{name}: {before[name]!r} in the run, {now[name]!r} in {file}; the run's holds, --config.{name} changes it"
        for name in different
        if _below(name, APPLIED)
    ]


def differences(run: ConfigDict, config: ConfigDict) -> list[str]:
    """A line for each option in which `config` differs from the run."""
    before, now = flatten(run), flatten(config)
    return [
        f"{name}: {before.get(name)!r} in the run, {now[name]!r} here"
        for name in sorted(now)
        if before.get(name) != now[name]
    ]


def _below(name: str, names: Collection[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in names)
