"""Starting a run from the network of another."""

from collections.abc import Mapping

from flax import traverse_util

from diou_jax.errors import UserError

# What has a row per class.
CLASS_DEPENDENT = ("params/box_head/logits/", "params/box_head/deltas/")


def fine_tune(variables: Mapping, stored: Mapping, *, source: str) -> tuple[dict, list[str]]:
    """A network's variables with those of another run.

    Args:
      variables: random ones, of the network to be trained.
      stored: of the other run.
      source: what messages call it.

    Returns:
      The variables, and the names of those that stay random as they belong to another number of classes.

    Raises:
      UserError: something else differs; names it.
    """
    ours, theirs = (traverse_util.flatten_dict(dict(tree), sep="/") for tree in (variables, stored))
    different = [
        f"{name} is {_kind(theirs, name)} there and {_kind(ours, name)} here"
        for name in sorted(ours.keys() | theirs.keys())
        if _kind(ours, name) != _kind(theirs, name) and not name.startswith(CLASS_DEPENDENT)
    ]
    if different:
        raise UserError(f"init.checkpoint={source} is of another network: {'; '.join(different[:5])}")
    left_out = [name for name in ours if _kind(ours, name) != _kind(theirs, name)]
    taken = {name: theirs[name] for name in ours if name not in left_out}
    return traverse_util.unflatten_dict(ours | taken, sep="/"), [name.removeprefix("params/") for name in left_out]


def _kind(tree, name):
    return f"{tree[name].dtype} {tuple(tree[name].shape)}" if name in tree else "absent"
