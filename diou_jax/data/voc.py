"""Reads Pascal VOC: an xml file for each image, and splits as lists of names in ImageSets/Main."""

import os
import pathlib
from xml.etree import ElementTree

from tqdm import tqdm

from diou_jax.data.annotated_folder import (
    IMAGES,
    AnnotatedFolder,
    AnnotatedImage,
    Box,
    Problems,
    bounding_box_class,
    files_below,
    is_finite,
    read_text,
    width_and_height,
)
from diou_jax.data.annotations import flag
from diou_jax.data.dataset import BadImageError, Faults
from diou_jax.data.split_names import split_of_image
from diou_jax.errors import UserError

FOLDERS_OF_IMAGES = ("JPEGImages", "images", "Images")
LISTS = ("train", "val", "trainval", "test")
DIFFICULT = {"": False, "unspecified": False, "no": False, "yes": True}  # words beside those of `annotations.flag`


def recognises(source: pathlib.Path) -> bool:
    """Whether a folder holds xml files of Pascal VOC."""
    return any(map(_is_annotation, files_below(source, (".xml",))))


def read(source: pathlib.Path) -> AnnotatedFolder:
    """Reads all images of a folder in VOC's layout (also several years in one folder) or with xml files beside images.

    VOC's corners are inclusive pixels counted from 1. A difficult object becomes a crowd, which COCO's evaluation
    counts neither as found nor as missed. Image sizes are taken from the image files.

    Raises:
      UserError: if a file or an object cannot be read, or an image or globox is missing.
    """
    problems, remarks = Problems(), Faults()
    read_one = _Reader(source, problems, remarks)
    found: dict[str, list[AnnotatedImage | None]] = {}
    done: set[pathlib.Path] = set()
    for main in _folders_of_lists(source):
        for split, xmls in _lists(main, problems).items():
            found.setdefault(split, []).extend(map(read_one, tqdm(xmls, desc=split, leave=False)))
            done.update(xmls)
    rest = [path for path in files_below(source, (".xml",)) if path not in done and _is_annotation(path)]
    if found:
        remarks.add("annotations in no list of ImageSets/Main, left out", *map(str, rest))
    else:
        for path in tqdm(rest, leave=False):
            found.setdefault(split_of_image(path, source), []).append(read_one(path))
        remarks.add("images without an xml file, left out", *map(str, read_one.unread()))
    problems.refuse()
    splits = {split: [image for image in images if image] for split, images in found.items()}
    names = sorted({box.label for images in splits.values() for image in images for box in image.boxes})
    return AnnotatedFolder(splits, {name: number for number, name in enumerate(names, start=1)}, remarks)


class _Reader:
    """Reads an xml file with its image, each only once; a failure is added to `problems` and gives None."""

    def __init__(self, source, problems, remarks):
        self._images: dict[tuple[pathlib.Path, str], pathlib.Path] = {}
        for path in files_below(source, IMAGES):
            self._images.setdefault((path.parent, path.stem), path)
            self._images[path.parent, path.name] = path
        self._problems, self._remarks, self._known = problems, remarks, {}
        self._taken: dict[pathlib.Path, pathlib.Path] = {}

    def __call__(self, path: pathlib.Path) -> AnnotatedImage | None:
        if path not in self._known:
            self._known[path] = self._read(path)
        return self._known[path]

    def unread(self) -> list[pathlib.Path]:
        """The images to which no xml file belongs."""
        read = {image.path for image in self._known.values() if image}
        return sorted(set(self._images.values()) - read)

    def _read(self, path):
        try:
            root = ElementTree.parse(path).getroot()
        except OSError as error:
            return self._problems.add(f"{path}: cannot be read ({error.strerror})")
        except (ElementTree.ParseError, LookupError, ValueError) as error:
            return self._problems.add(f"{path}: not an xml file ({error})")
        if root.tag != "annotation":
            return self._problems.add(f"{path}: its root is <{root.tag:.40}>, not <annotation>; move it away")
        image = self._image(path, root)
        if image is None:
            return self._problems.add(f"{path}: its image is neither in JPEGImages or images nor beside it")
        if (other := self._taken.setdefault(image, path)) != path:
            return self._problems.add(f"{path}: its image, {image}, is that of {other} too; delete one xml file")
        try:
            size = width_and_height(image)
        except BadImageError as error:
            return self._problems.add(str(error))
        size = self._as_annotated(path, root, size)
        boxes = [self._box(path, number, node) for number, node in enumerate(root.findall("object"), start=1)]
        return AnnotatedImage(image, size, tuple(box for box in boxes if box))

    def _image(self, path, root):
        """The image with the name of the xml file, or with the name inside it; None if there is none."""
        named = pathlib.PurePosixPath((root.findtext("filename") or "").strip().replace("\\", "/"))
        folders = [path.parent]
        parts = [part.lower() for part in path.parts]
        if "annotations" in parts:
            place = len(parts) - 1 - parts[::-1].index("annotations")
            beside, rest = pathlib.Path(*path.parts[:place]), path.parts[place + 1 : -1]
            folders = [*(beside.joinpath(images, *rest) for images in FOLDERS_OF_IMAGES), *folders]
        names = [path.stem, named.name, named.stem]
        if named.stem == path.stem:  # its suffix tells images of one stem apart
            names = [named.name, path.stem]
        for folder in folders:
            for name in names:
                if (folder, name) in self._images:
                    return self._images[folder, name]
        return None

    def _as_annotated(self, path, root, size):
        """The image's size; width and height are exchanged if the xml file states them so."""
        given = tuple((root.findtext(f"size/{side}") or "").strip() for side in ("width", "height"))
        if given == tuple(map(str, size[::-1])):
            return size[::-1]
        if all(given) and given != tuple(map(str, size)):
            text = "x".join(given)
            self._remarks.add("xml files with another size than their image's, which was taken", f"{path}: {text}")
        return size

    def _box(self, path, number, node):
        try:
            box = bounding_box_class().from_xml(node)
        except UserError:
            raise
        except Exception:  # globox raises various exceptions for bad input
            box = None
        if box is None or not is_finite(box) or not box.label.strip():
            return self._problems.add(
                f"{path}: object {number} must have a name and a bndbox of four numbers, xmin <= xmax and ymin <= ymax"
            )
        if min(box.xmin, box.ymin) < 1:
            self._remarks.add("boxes that begin before pixel 1, the first in Pascal VOC", f"{path}: object {number}")
        stated = (node.findtext("difficult") or "").strip().lower()
        difficult = DIFFICULT.get(stated, flag(stated))
        if difficult is None:
            return self._problems.add(f"{path}: object {number} is difficult {stated!r:.60}; it must be 0 or 1")
        left, top, right, bottom = box.ltrb
        return Box(box.label.strip(), (left - 1, top - 1, right - left + 1, bottom - top + 1), crowd=difficult)


def _is_annotation(path):
    """Whether to read an xml file as annotations; a damaged one is read, so that an error names it."""
    if path.parent.name.lower() == "annotations":
        return True
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError:
        return True
    head = head.replace(b"\0", b"")  # UTF-16 has one beside each letter
    return b"<annotation" in head or not head.strip()


def _folders_of_lists(source):
    return sorted(path for path in source.glob("**/ImageSets/Main") if path.is_dir())


def _lists(main, problems) -> dict[str, list[pathlib.Path]]:
    """The xml files of each list in ImageSets/Main; empty lists are left out."""
    annotations = main.parent.parent / "Annotations"
    lists: dict[str, dict[pathlib.Path, None]] = {}
    for split in LISTS:
        file = main / f"{split}.txt"
        if not file.is_file():
            continue
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            if not line.split():
                continue
            # A name may have blanks, in quotes or not; after other names a number may follow.
            names = line.strip(), line.strip().strip("\"'"), line.split()[0]
            paths = [annotations / f"{name}.xml" for name in names]
            path = next((path for path in paths if os.path.isfile(path)), None)
            if path is None:
                problems.add(f"{file}, line {number}: {paths[0]} does not exist")
            else:
                lists.setdefault(split, {})[path] = None
    return {split: list(paths) for split, paths in lists.items()}
