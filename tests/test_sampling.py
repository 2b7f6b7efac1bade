import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from diou_jax.detection.sampling import draw_subset, sample

PLACES = 40
jitted_draw = jax.jit(draw_subset, static_argnames="limit")
jitted_sample = jax.jit(sample, static_argnames=("objects", "total"))


@functools.partial(jax.jit, static_argnames=("limit", "trials"))
def many_draws(mask, *, limit, trials):
    return jax.vmap(lambda key: draw_subset(mask, limit, key)[0])(jax.random.split(jax.random.key(0), trials))


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(
    st.lists(st.booleans(), min_size=PLACES, max_size=PLACES), st.sampled_from([0, 1, 7, 40, 55]), st.integers(0, 999)
)
def test_draws_are_distinct_places_of_the_mask_and_as_many_as_there_can_be(mask, limit, seed):
    mask = np.array(mask)
    index, drawn = (np.asarray(x) for x in jitted_draw(mask, limit=limit, key=jax.random.key(seed)))
    assert index.shape == drawn.shape == (min(limit, PLACES),)
    assert drawn.sum() == min(limit, mask.sum())
    assert drawn[: drawn.sum()].all(), "draws come first"
    assert mask[index[drawn]].all()
    assert len(np.unique(index[drawn])) == drawn.sum()


@pytest.mark.parametrize("prefix", [1, 2, 6])
def test_every_place_is_drawn_equally_often_and_so_it_is_in_a_prefix(prefix):
    mask = np.arange(30) % 3 > 0
    trials, share = 20_000, prefix / mask.sum()
    found = np.asarray(many_draws(mask, limit=6, trials=trials))[:, :prefix]
    count = np.bincount(found.ravel(), minlength=len(mask))
    assert (count[~mask] == 0).all()
    # Five standard deviations: the seed is fixed, so this passes or fails for good.
    assert np.abs(count[mask] - trials * share).max() < 5 * np.sqrt(trials * share * (1 - share))


def test_two_places_are_drawn_together_as_often_as_chance_has_it():
    mask = np.ones(10, bool)
    trials, limit = 20_000, 4
    found = np.asarray(many_draws(mask, limit=limit, trials=trials))
    chosen = np.zeros((trials, 10), int)
    np.put_along_axis(chosen, found, 1, 1)
    together = (chosen.T @ chosen)[np.triu_indices(10, 1)]
    share = limit * (limit - 1) / (10 * 9)
    assert np.abs(together - trials * share).max() < 5 * np.sqrt(trials * share * (1 - share))


def test_a_draw_is_a_function_of_its_key_also_under_vmap():
    mask = np.ones(PLACES, bool)
    keys = jax.random.split(jax.random.key(3), 2)
    together = jax.vmap(lambda key: draw_subset(mask, 10, key)[0])(keys)
    np.testing.assert_array_equal(together[0], draw_subset(mask, 10, keys[0])[0])
    assert not np.array_equal(together[0], together[1])


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    st.lists(st.sampled_from(["object", "background", "neither"]), min_size=PLACES, max_size=PLACES),
    st.sampled_from([(0, 6), (3, 12), (12, 12), (10, 40)]),
    st.integers(0, 999),
)
def test_a_sample_has_objects_first_and_is_filled_with_background(kinds, limits, seed):
    objects, total = limits
    foreground, background = (np.array([kind == name for kind in kinds]) for name in ("object", "background"))
    found = jitted_sample(foreground, background, jax.random.key(seed), objects=objects, total=total)
    rows, is_object, drawn = (np.asarray(x) for x in found)
    assert rows.shape == is_object.shape == drawn.shape == (total,)
    number = min(objects, foreground.sum())
    assert is_object.tolist() == [place < number for place in range(total)]
    filled = number + min(total - number, background.sum())
    assert drawn.tolist() == [place < filled for place in range(total)]
    assert foreground[rows[:number]].all() and background[rows[number:filled]].all()
    assert len(np.unique(rows[:filled])) == filled
    assert (rows >= 0).all() and (rows < PLACES).all()
