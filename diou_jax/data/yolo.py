"""YOLO's text files, one for each image: a line has a class number and a box, or a polygon, in shares of the image."""

import os
import pathlib

from diou_jax.data.annotated import SUFFIXES, Annotated, Box, Found, bounding_box, image_size
from diou_jax.data.layouts import split_of, walk
from diou_jax.errors import UserError

CLASS_FILES = ("classes.txt", "obj.names", "*.names", "_darknet.labels")


def read(folder: pathlib.Path) -> Found | None:
    """All images of a folder with their boxes; None without text files of boxes. Images without one have no boxes.

    Raises:
      UserError: a file is damaged, there are no names of classes, or a number has none.
    """
    settings = _settings(folder)
    by_split = _images(folder, settings)
    texts = {image: _text_of(image) for images in by_split.values() for image in images}
    if not any(text.is_file() for text in texts.values()):
        return None
    names = _names(folder, settings)
    found = Found({split: [] for split in by_split}, tuple(names.values()))
    if len(set(found.classes)) < len(found.classes):
        raise UserError(f"{folder}: two classes have the same name: {', '.join(found.classes)}")
    for split, images in by_split.items():
        for image in images:
            size, text = image_size(image), texts[image]
            if not text.is_file():
                found.remarks["images without a text file, taken as empty"] += 1
            boxes = tuple(_boxes(text, size, names)) if text.is_file() else ()
            found.splits[split].append(Annotated(image.relative_to(folder).as_posix(), size, boxes))
    return found


def _settings(folder) -> dict:
    """The content of the one data.yaml, with the folder that it lies in; empty where there is none."""
    files = walk(folder, "data.yaml", "data.yml") or [
        file for file in walk(folder, ".yaml", ".yml") if b"names" in file.read_bytes()
    ]
    if not files:
        return {}
    if len(files) > 1:
        raise UserError(f"{folder} holds several of YOLO's yaml files: {', '.join(map(str, files))}; name one's folder")
    import yaml

    try:
        content = yaml.safe_load(files[0].read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{files[0]}: not a yaml file ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or "names" not in content:
        raise UserError(f"{files[0]}: it has no names of classes")
    return content | {"file": files[0]}


def _images(folder, settings) -> dict[str, list[pathlib.Path]]:
    """Images by split: as data.yaml says, else by the names of their folders."""
    by_split = {}
    for split in ("train", "val", "test"):
        places = settings.get(split) or ()
        for place in [places] if isinstance(places, str) else places:
            by_split.setdefault(split, []).extend(_place(folder, settings, str(place)))
    if not by_split:
        for image in walk(folder, *SUFFIXES):
            by_split.setdefault(split_of(image.parent / "x", folder), []).append(image)
    return {split: list(dict.fromkeys(images)) for split, images in by_split.items()}


def _place(folder, settings, place):
    """The images of one entry of data.yaml: a folder, or a list of paths."""
    base = settings["file"].parent
    # Exporters write paths of their own machine, or "../train/images" beside the yaml.
    inside = place.removeprefix("./")
    while inside.startswith("../"):
        inside = inside.removeprefix("../")
    starts = [base / str(settings.get("path") or ""), base, folder]
    for path in (start / some for some in (place, inside) for start in starts):
        path = _inside(path, folder)
        if path is None:
            continue
        if path.is_dir():
            return walk(path, *SUFFIXES)
        if path.is_file():
            lines = path.read_text(encoding="utf-8").split("\n")
            return [_listed(folder, path, line.strip()) for line in lines if line.strip()]
    raise UserError(f"{settings['file']}: {place} is neither a folder nor a list of images below {folder}")


def _listed(folder, file, name):
    for path in (_inside(file.parent / name, folder), _inside(folder / name, folder)):
        if path is not None and path.is_file():
            return path
    raise UserError(f"{file}: {name} is no image below {folder}")


def _inside(path, folder):
    """The path as one below the folder, links left as they are; None where it leads out, as no json's name may."""
    relative = os.path.relpath(path, folder)
    return None if relative.startswith("..") else folder / relative


def _text_of(image):
    """Where an image's boxes are: labels instead of the last folder called images, or beside the image."""
    parts = list(image.parent.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        path = pathlib.Path(*parts[:last], "labels", *parts[last + 1 :], f"{image.stem}.txt")
        if path.is_file():
            return path
    return image.with_suffix(".txt")


def _names(folder, settings) -> dict[int, str]:
    """Class names by number."""
    if settings:
        names = settings["names"]
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        try:
            return {int(number): str(name).strip() for number, name in sorted(pairs)}
        except (TypeError, ValueError):
            raise UserError(f"{settings['file']}: names are {names!r}, not a list of class names") from None
    for pattern in CLASS_FILES:
        for file in sorted(folder.glob(f"**/{pattern}")):
            lines = file.read_text(encoding="utf-8").splitlines()
            return {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    raise UserError(f"{folder}: the names of the classes are missing; write them to classes.txt, one a line")


def _boxes(text, size, names):
    reader = bounding_box()
    for number, line in enumerate(text.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            read_line = reader.from_yolo_v5 if len(fields) <= 6 else reader.from_yolo_seg
            box = read_line(line, image_size=size)
            label = names[int(box.label)]
        except KeyError:
            raise UserError(f"{text}, line {number}: class {fields[0]} has no name") from None
        except Exception as error:  # globox raises what its parts raise
            raise UserError(f"{text}, line {number}: not a class number with a box ({error})") from None
        yield Box(label, (box.xmin, box.ymin, box.xmax - box.xmin, box.ymax - box.ymin))
