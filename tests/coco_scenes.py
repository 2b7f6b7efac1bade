"""Small data sets with detections, by hand and at random, and their matches."""

import json

import numpy as np

from diou_jax.evaluation.coco_results import evaluate


def thing(image, category, box, **fields):
    """An object or, with a score, a detection; the box is x, y, width, height."""
    return {"image_id": image, "category_id": category, "bbox": [float(side) for side in box], **fields}


def truth(objects, *, images=(1,), classes=("cup",)):
    """The content of an annotation file; classes are numbered from 1."""
    return {
        "images": [{"id": image, "height": 500, "width": 500} for image in images],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
        "annotations": [{"id": number} | one for number, one in enumerate(objects, start=1)],
    }


def score(folder, content, results, **options):
    """COCOeval's summary, with matches."""
    file = folder / "truth.json"
    file.write_text(json.dumps(content))
    return evaluate(results, [file], with_matches=True, **options)


def match(folder, objects, results, *, images=(1,), classes=("cup",)):
    """The matches of detections with objects."""
    return score(folder, truth(objects, images=images, classes=classes), results).matches


def draw_scene(seed, *, images=6, classes=3, objects=4, found=12, crowd=0.1):
    """A random data set and results: images, sizes and scores differ; errors of every kind occur.

    The last class has no objects, the last image none, the first no detections. No two scores are equal.
    """
    rng = np.random.default_rng(seed)
    names = [f"class {number}" for number in range(classes)]
    things, results = [], []
    for image in range(1, images):
        for _ in range(rng.integers(1, objects + 1)):
            box = [*rng.uniform(0, 200, 2), *np.exp(rng.uniform(2.5, 5.5, 2))]
            area = box[2] * box[3] * rng.uniform(0.5, 1)
            label = int(rng.integers(1, classes))
            things.append(thing(image, label, box, area=area, iscrowd=int(rng.random() < crowd)))
    for image in range(2, images + 1):
        mine = [one for one in things if one["image_id"] == image]
        for _ in range(found):
            if mine and rng.random() < 0.8:
                model = mine[rng.integers(len(mine))]
                x, y, width, height = model["bbox"]
                shift = rng.normal(0, rng.choice([0.02, 0.1, 0.4]), 4)
                box = [x + shift[0] * width, y + shift[1] * height, width * np.exp(shift[2]), height * np.exp(shift[3])]
                label = model["category_id"] if rng.random() < 0.8 else int(rng.integers(1, classes + 1))
            else:
                box, label = [*rng.uniform(0, 300, 2), *rng.uniform(10, 100, 2)], int(rng.integers(1, classes + 1))
            results.append(thing(image, label, box))
    scores = rng.permutation(len(results)) + 1.0
    results = [one | {"score": value / (len(results) + 1)} for one, value in zip(results, scores.tolist(), strict=True)]
    return truth(things, images=range(1, images + 1), classes=names), results
