"""Pascal VOC's xml files, one for each image."""

import pathlib
from xml.etree import ElementTree

from diou_jax.data.annotated import Annotated, Box, Found, bounding_box, image_files, image_size
from diou_jax.data.layouts import split_of, walk
from diou_jax.errors import UserError


def read(folder: pathlib.Path, *, origin: int = 1) -> Found | None:
    """All images of a folder with their boxes; None without annotations.

    A pixel's number is inclusive and counts from `origin`: a box from xmin to xmax has ``xmax - xmin + 1`` columns and
    begins at ``xmin - origin``. A difficult object becomes a crowd, which is neither trained on nor held against a
    detector, as VOC's own evaluation treats it.

    Raises:
      UserError: a file is damaged, or none of the images is there.
    """
    files = {file: root for file in walk(folder, ".xml") if (root := _parse(file)) is not None}
    if not files:
        return None
    images = image_files(folder)
    found, labels = Found({}, ()), set()
    members = _image_sets(folder)
    for file, root in files.items():
        image = _image_of(file, root, images)
        if image is None:
            found.remarks["xml files without an image, left out"] += 1
            continue
        boxes = tuple(_boxes(file, root, origin, found))
        labels |= {box.label for box in boxes}
        annotated = Annotated(image.relative_to(folder).as_posix(), image_size(image), boxes)
        if members:
            splits = [split for split, names in members.items() if file.stem in names]
        else:
            splits = [split_of(file, folder)]
        if not splits:
            found.remarks["images in none of ImageSets/Main, left out"] += 1
        for split in splits:
            found.splits.setdefault(split, []).append(annotated)
    if not any(found.splits.values()):
        raise UserError(f"{folder}: no image of the {len(files)} xml files, such as {next(iter(files))}, is there")
    found.classes = tuple(sorted(labels))
    return found


def _parse(file):
    """The root of an annotation; None for other xml files."""
    content = file.read_bytes()
    if b"<annotation" not in content[:2000]:
        return None
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise UserError(f"{file}: not an xml file ({error})") from None
    return root if root.tag == "annotation" else None


def _boxes(file, root, origin, found):
    for position, node in enumerate(root.iter("object")):
        try:
            box = bounding_box().from_xml(node)
        except Exception as error:  # globox raises what its parts raise
            raise UserError(f"{file}: object {position + 1} has no name and box ({error})") from None
        if min(box.xmin, box.ymin) < origin:
            found.remarks[f"boxes that begin before pixel {origin}; --origin 0 is for tools that count from 0"] += 1
        x, y = box.xmin - origin, box.ymin - origin
        difficult = (node.findtext("difficult") or "0").strip() not in ("0", "")
        yield Box(str(box.label).strip(), (x, y, box.xmax - box.xmin + 1, box.ymax - box.ymin + 1), difficult)


def _image_of(file, root, images):
    """The image beside an xml file, in a folder beside its folder, or the only one of its name."""
    named = pathlib.PurePosixPath((root.findtext("filename") or "").replace("\\", "/").strip())
    for stem in dict.fromkeys((named.name, named.stem, file.stem)):
        there = images.get(stem, ())
        near = [path for path in there if path.parent == file.parent] or [
            path for path in there if path.parent.parent == file.parent.parent
        ]
        if len(near or there) == 1:
            return (near or there)[0]
    return None


def _image_sets(folder):
    """Names of images by split, of ImageSets/Main; all of them as "trainval" unless train and val are told apart."""
    for main in sorted(folder.glob("**/ImageSets/Main")):
        sets = {
            split: {line.split()[0] for line in (main / f"{split}.txt").read_text().splitlines() if line.strip()}
            for split in ("train", "val", "test", "trainval")
            if (main / f"{split}.txt").is_file()
        }
        if "train" in sets:
            sets.pop("trainval", None)
        return sets
    return {}
