"""Finds the annotation files and image folders of own data, in the layouts of all common exporters.

The split of a json follows from its name or that of its folder: ``annotations/instances_train.json``,
``valid/_annotations.coco.json``, ``labels_test.json``. A json without a split in its name holds all images, which are
then divided (`diou_jax.data.division`). Images are searched by their names in the json where exporters put them.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from diou_jax.data import annotations
from diou_jax.errors import UserError

# Exporters' names of the splits.
ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
ALL = "all"
# Other json files of COCO that lie beside the boxes, and result files of this program.
OTHER_TASKS = re.compile(r"^(captions|person_keypoints|stuff|panoptic|image_info|dataset_info|bbox_.*_results)")
DEPTH = 3  # levels of folders below the root that are searched
SAMPLES = 20  # images of a json that are searched for in a folder
CONVERTER = "python -m diou_jax.data.convert"


@dataclasses.dataclass(frozen=True)
class Part:
    """One json with its folder of images; `share` is "train" or "val" if the json is divided, else empty."""

    annotations: str
    images: str
    share: str = ""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The parts of a data set by split, and lines that say how they were found."""

    parts: Mapping[str, Part]
    lines: tuple[str, ...]


def find(root: str | os.PathLike, *, train: tuple[str, str] = ("", ""), val: tuple[str, str] = ("", "")) -> Layout:
    """Finds the parts of the data set below `root`.

    Args:
      root: the folder to search.
      train: annotation file and image folder of the training set; an empty one is searched for.
      val: likewise for the validation set. If none is given or found, the training images are divided.

    Raises:
      UserError: if nothing is found, several files fit (the message lists them), or the folder holds annotations in
        another format (the message has the converter's command).
    """
    given = {name: pair for name, pair in (("train", train), ("val", val)) if pair[0]}
    for name, pair in (("train", train), ("val", val)):
        for option, path in zip(("annotations", "images"), pair):
            if path and not os.path.exists(path):
                raise UserError(f"data.{name}_{option}: {path} does not exist")
    root = pathlib.Path(root).expanduser()
    files = {} if "train" in given else _by_split(root, skip=tuple(given))
    files |= {name: pathlib.Path(pair[0]) for name, pair in given.items()}
    if not {"train", ALL} & files.keys():
        there = ", ".join(str(path) for path in files.values())
        raise UserError(f"{root} holds no training set beside {there}; data.train_annotations names its json")
    unread = files.pop(ALL) if "train" in files and ALL in files else None
    folders = {"train": train[1], ALL: train[1], "val": val[1]}
    parts: dict[str, Part] = {}
    lines = [] if unread is None else [f"not read: {unread}, whose name has no split, while those of other files do"]
    for split, file in files.items():
        try:
            parts[split] = Part(str(file), folders.get(split) or _images(file, split, root))
        except UserError as error:
            if split != "test" or "val" not in files:
                raise
            lines.append(f"test: left out, as {error}")
    if ALL in parts:
        parts.setdefault("train", parts.pop(ALL))
    if "val" not in parts and "test" in parts:
        parts["val"] = parts["test"]
        lines.append("val: there is no such set, so the test set takes its place")
    if "val" not in parts:
        parts |= {name: dataclasses.replace(parts["train"], share=name) for name in ("train", "val")}
    return Layout(parts, (*_described(parts), *lines))


def _described(parts):
    for name, part in parts.items():
        yield f"{name}: {'a share of ' if part.share else ''}{part.annotations}, images below {part.images}"


def _by_split(root: pathlib.Path, *, skip: Sequence[str] = ()) -> dict[str, pathlib.Path]:
    """The json of each split below `root`, except for the splits to `skip`."""
    if not root.is_dir():
        raise UserError(f"data.root: {root} is no folder; --config.data.root=FOLDER names the one with your data")
    found: dict[str, list[pathlib.Path]] = {}
    for file in walk(root, ".json"):
        if not OTHER_TASKS.match(file.name):
            found.setdefault(split_of(file, root), []).append(file)
    chosen = {}
    for split, files in found.items():
        if split in skip or (split == ALL and "train" in found):
            continue
        if len(files) > 1 or split == ALL:
            files = _preferred(files)
        if len(files) > 1:
            option = "data.train_annotations and data.val_annotations" if split != "test" else "test.datasets"
            raise UserError(
                f"{root} holds {len(files)} annotation files for {'all images' if split == ALL else split}: "
                f"{', '.join(map(str, files))}; say which with {option}"
            )
        if files:
            chosen[split] = files[0]
    if not chosen:
        raise UserError(_nothing(root, [file for files in found.values() for file in files]))
    return chosen


def _preferred(files: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """The files in COCO's format; if some of them are named ``instances_*``, these alone."""
    files = [file for file in files if _is_coco(file)]
    return [file for file in files if file.name.startswith("instances_")] or files


def _is_coco(file):
    try:
        annotations.read_json(file)
    except UserError:
        return False
    return True


def split_of(file: pathlib.Path, root: pathlib.Path) -> str:
    """The split named in the file's name or else in its folders' names below `root`; `ALL` if none is."""
    for part in (file.stem, *reversed(file.relative_to(root).parent.parts)):
        splits = {ALIASES[word] for word in re.findall("[a-z]+", part.lower()) if word in ALIASES}
        if len(splits) == 1:
            return splits.pop()
    return ALL


def walk(root: pathlib.Path, *suffixes: str) -> list[pathlib.Path]:
    """Sorted files below `root` with one of the suffixes; hidden files and folders are left out."""
    found = []
    for folder in _folders(root):
        with os.scandir(folder) as entries:
            found += [
                pathlib.Path(entry.path)
                for entry in entries
                if entry.name.lower().endswith(suffixes) and not entry.name.startswith(".") and entry.is_file()
            ]
    return sorted(found)


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    """`root` and the folders up to `DEPTH` levels below it, sorted level by level."""
    found, level = [root], [root]
    for _ in range(DEPTH):
        level = sorted(child for folder in level for child in _children(folder))
        found += level
    return found


def _children(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        with os.scandir(folder) as entries:
            return [pathlib.Path(e.path) for e in entries if e.is_dir() and not e.name.startswith((".", "__"))]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None


def _images(file: pathlib.Path, split: str, root: pathlib.Path) -> str:
    """The folder that holds the most images of a json, by a sample of their names."""
    images = annotations.read_json(file)["images"]
    annotations.refuse_names(images, file)
    names = [image["file_name"] for image in images[:: max(1, len(images) // SAMPLES)]]
    if not names:
        raise UserError(f"{file}: it lists no usable images")
    candidates = _candidates(file, split, root)
    hits = [sum((folder / name).is_file() for name in names) for folder in candidates]
    option = f"data.{'val' if split == 'val' else 'train'}_images"
    if not any(hits):
        raise UserError(f"{file}: its images, such as {names[0]}, are not below {root}; {option} names their folder")
    best = [folder for folder, count in zip(candidates, hits) if count == max(hits)]
    expected = set(_expected(file, split, root))
    others = [folder for folder in best if folder not in expected]
    if best[0] not in expected and len(others) > 1:
        raise UserError(
            f"{file}: its images, such as {names[0]}, are in several folders: {', '.join(map(str, others))}; "
            f"say which with {option}"
        )
    return str(best[0])


def _candidates(file, split, root) -> list[pathlib.Path]:
    """Folders that may hold the images of a json, the likeliest first; folders of other splits are left out."""
    own = [folder for folder in _expected(file, split, root) if folder.is_dir()]
    rest = _folders(root) if root.is_dir() else []
    rest = [folder for folder in rest if split == ALL or split_of(folder / "x", root) in (split, ALL)]
    return list(dict.fromkeys([*own, *rest]))


def _expected(file, split, root) -> Iterable[pathlib.Path]:
    """The folders in which exporters put images."""
    named = re.sub(r"^instances_", "", file.stem)
    words = dict.fromkeys([named, split, *(word for word, value in ALIASES.items() if value == split)])
    for base in dict.fromkeys([root, file.parent.parent, file.parent]):
        for word in words:
            yield from (base / "images" / word, base / word / "images", base / word)
    for base in dict.fromkeys([file.parent, file.parent.parent, root]):
        yield from (base, base / "images", base / "JPEGImages", base / "data")


def _nothing(root, files) -> str:
    """The message for a folder without COCO annotations."""
    if files:
        return f"{root} holds no COCO annotation file: {', '.join(map(str, files[:5]))} have no images and categories"
    kind = other_kind(root)
    if kind:
        return f"{root} holds {kind}; {CONVERTER} {root} TARGET writes a folder that is read here"
    return (
        f"{root} holds no annotation file (*.json) within {DEPTH} folders; expected are "
        "annotations/instances_train.json and images/train, an export of Roboflow or CVAT in COCO's form, or one json "
        "for all images"
    )


def other_kind(root: str | os.PathLike) -> str:
    """The format of annotations that the converter reads, with their first file; empty if there are none."""
    root = pathlib.Path(root)
    if xml := [file for file in walk(root, ".xml") if b"<annotation" in file.read_bytes()[:1000]]:
        return f"Pascal VOC annotations ({xml[0]})"
    yolo = [*walk(root, "data.yaml", "data.yml"), *(f for f in walk(root, ".txt") if _is_yolo(f))]
    return f"YOLO annotations ({yolo[0]})" if yolo else ""


def _is_yolo(file: pathlib.Path) -> bool:
    """Whether the first line of a text file consists of at least five numbers, as a class and a box do."""
    with open(file, "rb") as text:
        fields = text.readline(10000).split()
    return len(fields) >= 5 and all(re.fullmatch(rb"[-+.\deE]+", field) for field in fields)
