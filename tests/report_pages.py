"""Small evaluations with every kind of error, and images of one colour, for tests of pages."""

import json

import numpy as np

from diou_jax.evaluation import coco_results
from diou_jax.reporting.gallery import Photo, data_uri

# Names that HTML, SVG, mathtext and narrow encodings may stumble over.
NAMES = ("<script>document.title='broken'</script>", "猫と犬", '$x_1$ & "co"', "disc", "never seen")
SIDE = 100


def write_annotations(path, *, images=6, names=NAMES):
    """A json with images of `SIDE` pixels; each has two objects of a class and a third one of the next class."""
    content = {
        "images": [{"id": i + 1, "file_name": f"{i}.png", "height": SIDE, "width": SIDE} for i in range(images)],
        "categories": [{"id": 10 * (n + 1), "name": name} for n, name in enumerate(names)],
        "annotations": [],
    }
    for image in range(images):
        for place, (x, y, side) in enumerate(((5, 5, 30), (25, 5, 30), (60, 60, 20))):
            category = 10 * (1 + (image + place // 2) % (len(names) - 1))
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image + 1,
                    "category_id": category,
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "iscrowd": int(image == 5 and place == 2),
                }
            )
    path.write_text(json.dumps(content))
    return content


def results(content, *, shift=0):
    """Detections that are right, displaced, of the wrong class, twice there, or nowhere; some objects are missed."""
    found, categories = [], [one["id"] for one in content["categories"]]
    for one in content["annotations"]:
        number, (x, y, w, h) = one["id"] + shift, one["bbox"]
        box = {"image_id": one["image_id"], "category_id": one["category_id"]}
        score = 0.95 - 0.02 * number % 0.5
        if number % 6 in (0, 1, 2):
            found.append(box | {"bbox": [x + number % 3, y, w, h], "score": score})
        if number % 6 == 1:
            found.append(box | {"bbox": [x + 1, y + 1, w, h], "score": score - 0.2})
        if number % 6 == 3:
            found.append(box | {"bbox": [x + 0.6 * w, y, w, h], "score": score})
        if number % 6 == 4:
            wrong = categories[(categories.index(one["category_id"]) + 1) % (len(categories) - 1)]
            found.append(box | {"category_id": wrong, "bbox": [x, y, w, h], "score": score})
        if number % 6 == 5:
            found.append(box | {"bbox": [70, 2, 25, 20], "score": 0.3})
    return found


def matches(path, found):
    """The matches of results with the annotations in a file."""
    return coco_results.evaluate(found, [path], with_matches=True).matches


def image(number):
    """A uint8 BGR image of one colour."""
    return np.full((SIDE, SIDE, 3), 20 * number % 256, np.uint8)


class Album:
    """Images of one colour; the one with id 2 cannot be read."""

    def photo(self, image_id):
        """As `gallery.Album.photo`."""
        source = "" if image_id == 2 else data_uri(image(image_id))
        return Photo(
            f"a&b<{image_id}>.png",
            f"file:///images/{image_id}.png",
            source,
            (SIDE, SIDE),
        )

    def found_mask(self, kind, result):
        """As `gallery.Album.found_mask`."""

    def true_mask(self, image_id, box):
        """As `gallery.Album.true_mask`."""
