"""Converts a Pascal VOC or YOLO folder to COCO json with its images, as `diou_jax.data.catalog` reads them.

python -m diou_jax.data.convert VOCdevkit/VOC2007 data/voc

It writes TARGET/annotations/instances_<split>.json and TARGET/images/<split>. Images become hard links, which take no
space and outlive SOURCE, or copies if the file system has no links. Boxes are read by the optional package globox.
"""

import argparse
import filecmp
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from diou_jax.data import annotations, voc, yolo
from diou_jax.data.annotated_folder import AnnotatedImage, bounding_box_class
from diou_jax.errors import UserError
from diou_jax.files import replacing
from diou_jax.reporting.run_log import print_line

FORMATS = {"voc": voc, "yolo": yolo}

DIGITS = 6  # decimal places of coordinates in pixels; the products of shares and sides are exact to about twelve


def convert(source: str | os.PathLike, target: str | os.PathLike, format: str = "auto") -> list[str]:
    """Writes ``annotations/instances_<split>.json`` and ``images/<split>`` below `target`.

    No json is written before all annotations are read and all images are in place.

    Args:
      source: a folder as in `voc.read` and `yolo.read`; it stays unchanged.
      target: a folder outside `source` without such json files; it is made if missing.
      format: voc, yolo or auto.

    Returns:
      Lines that list the written files and the oddities.

    Raises:
      UserError: if there is nothing to convert, an annotation cannot be read, or `target` is in use.
    """
    bounding_box_class()  # nothing is done without globox
    source, target = (pathlib.Path(os.path.expanduser(path)) for path in (source, target))
    if not os.path.isdir(source):
        raise UserError(f"{source}: no such folder; SOURCE must be a Pascal VOC or YOLO folder")
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target}: TARGET must lie outside SOURCE, {source}")
    name = _format(source, format)
    content = FORMATS[name].read(source)
    splits = {split: images for split, images in content.splits.items() if images}
    if not splits:
        raise UserError(f"{source}: there are no {name} annotations with images")
    if not content.classes:
        raise UserError(f"{source}: no image has an object, so there is no class to learn")
    files = {split: target / "annotations" / f"instances_{split}.json" for split in splits}
    for file in files.values():
        if os.path.exists(file):
            raise UserError(f"{file} exists already; name another TARGET, or delete it")
    lines = [f"format: {name}", f"classes: {', '.join(content.classes)}"]
    named = {split: _names(images) for split, images in splits.items()}
    contents = {split: to_coco(images, content.classes) for split, images in named.items()}
    for split, file in files.items():
        annotations.refuse_names(contents[split]["images"], file)
    for split, images in named.items():
        _place(split, images, target / "images" / split)
    for split, file in files.items():
        _write(file, contents[split])
        lines.append(f"{file}: {len(contents[split]['images'])} images, {len(contents[split]['annotations'])} boxes")
    for kind, count in content.remarks.counts.items():
        lines.append(f"{count} {kind}, the first: {content.remarks.examples[kind][0]}")
    return lines


def to_coco(images: Mapping[str, AnnotatedImage], classes: Mapping[str, int]) -> dict:
    """The content of a COCO json.

    Args:
      images: images by file name. Ids of images and boxes count from 1 in this order (pycocotools takes 0 for "none").
      classes: category id by name.
    """
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for name, number in classes.items()],
    }
    for image_id, (file_name, image) in enumerate(images.items(), start=1):
        width, height = image.size
        content["images"].append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for box in image.boxes:
            annotation = {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": classes[box.label],
                "bbox": [round(value, DIGITS) for value in box.xywh],
                "area": round(box.xywh[2] * box.xywh[3], DIGITS),
                "iscrowd": int(box.crowd),
            }
            if box.polygon:
                annotation["segmentation"] = [[round(value, DIGITS) for value in box.polygon]]
            content["annotations"].append(annotation)
    return content


def _format(source, format):
    if format != "auto":
        return format
    found = [name for name, module in FORMATS.items() if module.recognises(source)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{source} has files of both {' and '.join(found)}; choose by --format")
    raise UserError(
        f"{source}: neither Pascal VOC (Annotations/*.xml) nor YOLO (data.yaml, classes.txt or labels/) was found"
    )


def _names(images: Sequence[AnnotatedImage]) -> dict[str, AnnotatedImage]:
    """The images by their paths relative to the common folder, sorted."""
    common = os.path.commonpath([image.path.parent.absolute() for image in images])
    named = {pathlib.Path(os.path.relpath(image.path.absolute(), common)).as_posix(): image for image in images}
    return dict(sorted(named.items()))


def _place(split, images, folder):
    """Puts the image files below `folder`; files that an interrupted conversion put there are kept."""
    for file_name, image in tqdm(images.items(), desc=f"images/{split}", leave=False):
        goal, origin = folder / file_name, image.path.resolve()
        try:
            if os.path.lexists(goal):
                same = goal.is_file() and (goal.samefile(origin) or filecmp.cmp(origin, goal, shallow=False))
                if not same:
                    raise UserError(f"{goal} exists already and is another file than {origin}; name another TARGET")
                continue
            goal.parent.mkdir(parents=True, exist_ok=True)
            _link(origin, goal)
        except OSError as error:
            raise UserError(f"{goal} cannot be written ({error.strerror})") from None


def _link(origin, goal):
    try:
        os.link(origin, goal)
    except OSError:
        with replacing(goal) as draft:
            shutil.copyfile(origin, draft)


def _write(file, content):
    try:
        with replacing(file) as draft:
            draft.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror})") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"command line: {message}; --help lists the options")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; a user's mistake prints one line and exits with code 2."""
    parser = _Parser(prog="python -m diou_jax.data.convert", description=__doc__.splitlines()[0])
    parser.add_argument("source", metavar="SOURCE", help="a Pascal VOC or YOLO folder, left as it is")
    parser.add_argument("target", metavar="TARGET", help="the folder in which annotations/ and images/ are made")
    parser.add_argument("--format", choices=("voc", "yolo", "auto"), default="auto")
    try:
        options = parser.parse_args(arguments)
        for line in convert(options.source, options.target, options.format):
            print_line(line)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
