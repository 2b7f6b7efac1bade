"""The division of a data set into training and validation images."""

import json

import pytest
from bad_images import COUNT, write_set

from diou_jax.data import catalog
from diou_jax.data.division import divide
from diou_jax.errors import UserError


@pytest.fixture
def load(tmp_path):
    """``load(name, edit)``: a data set whose list of images `edit` changes."""

    def run(name="seven", edit=lambda images: None):
        write_set(tmp_path, name)
        file = tmp_path / "annotations" / f"instances_{name}.json"
        content = json.loads(file.read_text())
        edit(content["images"])
        file.write_text(json.dumps(content))
        return catalog.load([name], tmp_path)

    return run


def names(data):
    return {data.image_name(row).rsplit("/", 1)[-1] for row in range(len(data))}


@pytest.mark.parametrize(("share", "count"), [(0.001, 1), (0.2, 1), (0.3, 2), (0.7, 5), (0.999, 6)])
def test_each_image_is_in_one_part_and_no_part_is_empty(load, share, count):
    train, val = divide(load(), share=share, seed=1)
    assert (len(train), len(val)) == (COUNT - count, count)
    assert names(train).isdisjoint(names(val)) and names(train) | names(val) == {f"{i}.jpg" for i in range(COUNT)}
    # A part's records and files belong together.
    for part in (train, val):
        for row, image_id in enumerate(part.records.image_ids.tolist()):
            assert part.image_name(row).endswith(f"/{image_id}.jpg") and part.read(row).startswith(b"\xff\xd8")


def test_neither_the_order_nor_the_folder_matters_but_the_seed(load):
    parts = [names(divide(data, share=0.4, seed=1)[1]) for data in (load(), load("other", list.reverse))]
    assert parts[0] == parts[1]
    assert len({frozenset(names(divide(load(), share=0.4, seed=seed)[1])) for seed in range(9)}) > 4


def test_an_image_that_is_added_later_moves_few(load):
    before = names(divide(load("fewer", list.pop), share=0.5, seed=1)[1])
    after = names(divide(load(), share=0.5, seed=1)[1])
    assert len(before ^ (after - {f"{COUNT - 1}.jpg"})) <= 1


@pytest.mark.parametrize("share", [0, 0.0, 1, -0.1, 1.5, float("nan")])
def test_a_share_of_nothing_or_of_all_is_refused(load, share):
    with pytest.raises(UserError, match=r"data\.val_share=.*it goes from 0 to 1, both excluded"):
        divide(load(), share=share, seed=1)


def test_a_single_image_cannot_be_divided(load):
    with pytest.raises(UserError, match="has one image, and two are the least"):
        divide(load("one", lambda images: images.__delitem__(slice(1, None))), share=0.5, seed=1)
    assert [
        len(part) for part in divide(load("two", lambda images: images.__delitem__(slice(2, None))), share=0.9, seed=1)
    ] == [1, 1]
