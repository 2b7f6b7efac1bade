"""The differences between the arrays of a checkpoint and those that a run wants."""

from typing import Any

import jax


def differences(stored: Any, like: Any) -> list[str]:
    """The differences between two trees of arrays, leaf by leaf. Dtypes must agree, since orbax would cast silently."""

    def kinds(tree):
        leaves = jax.tree_util.tree_leaves_with_path(stored_tree(tree))
        return {"/".join(_key(key) for key in path): f"{leaf.dtype} {tuple(leaf.shape)}" for path, leaf in leaves}

    stored, like = kinds(stored), kinds(like)
    return [
        f"{name} is {stored.get(name, 'absent')} there and {like.get(name, 'absent')} here"
        for name in sorted(stored.keys() | like.keys())
        if stored.get(name) != like.get(name)
    ]


def stored_tree(metadata: Any) -> Any:
    """The tree of stored arrays, which some versions of orbax wrap."""
    return getattr(metadata, "tree", metadata)


def _key(key) -> str:
    return str(next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)))
