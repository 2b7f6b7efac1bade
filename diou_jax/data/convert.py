"""Writes COCO json files from a folder of Pascal VOC or YOLO annotations; images stay where they are.

python -m diou_jax.data.convert FOLDER
python main.py --config configs/own.py --config.data.root=FOLDER --workdir runs/own

A file for each split goes to FOLDER/annotations (or to --output). Boxes are read by globox: pip install -e '.[convert]'
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence

from diou_jax.data import voc, yolo
from diou_jax.data.annotated import Annotated, bounding_box
from diou_jax.errors import UserError


def convert(
    folder: str | os.PathLike, output: str | os.PathLike = "", *, origin: int = 1
) -> tuple[list[pathlib.Path], list[str]]:
    """Writes ``instances_<split>.json`` for each split of a folder.

    Args:
      folder: Pascal VOC's (xml files beside their images, or Annotations, JPEGImages and ImageSets/Main) or YOLO's
        (text files beside their images or in labels for images; data.yaml, classes.txt or obj.names).
      output: where the files go, folder/annotations by default.
      origin: the number of the first pixel in Pascal VOC's xml; 0 for tools that count from 0.

    Returns:
      The files, and lines on what they hold and on what was odd.

    Raises:
      UserError: there is nothing to convert, an annotation cannot be read, or a file exists already.
    """
    bounding_box()
    folder = pathlib.Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    found = voc.read(folder, origin=origin) or yolo.read(folder)
    if found is None or not any(found.splits.values()):
        raise UserError(f"{folder} holds neither Pascal VOC's xml files nor YOLO's text files with their images")
    output = pathlib.Path(output) if output else folder / "annotations"
    files = {split: output / f"instances_{split}.json" for split, images in found.splits.items() if images}
    for file in files.values():
        if file.exists():
            raise UserError(f"{file} exists already; --output names another folder")
    lines = []
    for split, file in files.items():
        images = sorted(found.splits[split], key=lambda image: image.file_name)
        content = to_coco(images, found.classes)
        _write(file, content)
        lines.append(f"{file}: {len(content['images'])} images, {len(content['annotations'])} boxes")
    lines.append(f"classes: {', '.join(found.classes)}")
    return list(files.values()), lines + [f"{count} {what}" for what, count in sorted(found.remarks.items())]


def to_coco(images: Iterable[Annotated], classes: Sequence[str]) -> dict:
    """A COCO json's content; ids count from 1."""
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
    }
    for image_id, image in enumerate(images, start=1):
        width, height = image.size
        content["images"].append({"id": image_id, "file_name": image.file_name, "width": width, "height": height})
        for box in image.boxes:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": numbers[box.label],
                    "bbox": [round(value, 4) for value in box.xywh],
                    "area": round(box.xywh[2] * box.xywh[3], 4),
                    "iscrowd": int(box.crowd),
                }
            )
    return content


def _write(file, content):
    draft = file.with_suffix(".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(content), encoding="utf-8")
        os.replace(draft, file)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}); --output names another folder") from None


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m diou_jax.data.convert", description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="with Pascal VOC or YOLO annotations and their images")
    parser.add_argument("--output", default="", help="folder for the json files; FOLDER/annotations by default")
    parser.add_argument("--origin", type=int, choices=(0, 1), default=1, help="Pascal VOC's first pixel")
    options = parser.parse_args(arguments)
    try:
        files, lines = convert(options.folder, options.output, origin=options.origin)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(*lines, sep="\n")
    where = f"--config.data.root={options.folder}"
    if options.output:
        named = {"train": "train", "val": "val", "all": "train", "trainval": "train"}
        splits = [file.stem.removeprefix("instances_") for file in files]
        where = " ".join(
            f"--config.data.{named[split]}_annotations={file} --config.data.{named[split]}_images={options.folder}"
            for split, file in zip(splits, files)
            if split in named
        )
    print(f"next: python main.py --config configs/own.py {where} --workdir runs/own")


if __name__ == "__main__":
    main()
