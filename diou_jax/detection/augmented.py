"""Augmented testing: boxes of several views of an image are united before suppression, masks are averaged.

The field calls it test-time augmentation; the original has it as TEST.BBOX_AUG and TEST.MASK_AUG.
`diou_jax.detection.staged` makes the passes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from diou_jax.structures import Candidates


def unite(parts: Sequence[Candidates]) -> Candidates:
    """The candidates of several passes, (B, K - 1, R of all passes, ...), in the order of the passes."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, 2), *parts)


def soft_average(masks: jax.Array) -> jax.Array:
    """The mean (B, D, M, M) of the probabilities (V, B, D, M, M) of V passes."""
    return masks.mean(0)


def soft_maximum(masks: jax.Array) -> jax.Array:
    """The largest of the probabilities of V passes; shapes as in `soft_average`."""
    return masks.max(0)


def logit_average(masks: jax.Array) -> jax.Array:
    """The probability of the mean logit of V passes; shapes as in `soft_average`."""
    return jax.nn.sigmoid(-jnp.log((1 - masks) / jnp.maximum(masks, 1e-20)).mean(0))


# TEST.MASK_AUG.HEUR
MASK_HEURISTICS = {"SOFT_AVG": soft_average, "SOFT_MAX": soft_maximum, "LOGIT_AVG": logit_average}
