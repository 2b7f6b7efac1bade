"""Finds the annotation files and image folders of own data, in the layouts of all common exporters.

The split of a json follows from its name or that of its folder: ``annotations/instances_train.json``,
``valid/_annotations.coco.json``, ``labels_test.json``. A json without a split in its name holds all images, which are
then divided (`diou_jax.data.division`). Images are searched by their names in the json where exporters put them.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from diou_jax.data import annotations
from diou_jax.data.split_names import ALIASES, ALL, split_of_json
from diou_jax.errors import UserError

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
    root = pathlib.Path(os.path.expanduser(root))
    files, lines = ({}, []) if "train" in given else _by_split(root, skip=tuple(given))
    files |= {name: pathlib.Path(pair[0]) for name, pair in given.items()}
    if not {"train", ALL} & files.keys():
        there = ", ".join(str(path) for path in files.values())
        unread = "".join(f"; {line}" for line in lines)
        raise UserError(f"{root} holds no training set beside {there}; data.train_annotations names its json{unread}")
    folders = {"train": train[1], ALL: train[1], "val": val[1]}
    parts: dict[str, Part] = {}
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


def _by_split(root: pathlib.Path, *, skip: Sequence[str] = ()) -> tuple[dict[str, pathlib.Path], list[str]]:
    """The json of each split below `root`, except for the splits to `skip`; and lines on files of other kinds."""
    if not os.path.isdir(root):
        raise UserError(f"data.root: {root} is no folder; --config.data.root=FOLDER names the one with your data")
    found: dict[str, list[pathlib.Path]] = {}
    for file in walk(root, ".json"):
        if not OTHER_TASKS.match(file.name):
            found.setdefault(split_of_json(file, root), []).append(file)
    chosen, lines = {}, []
    for split in sorted(found, key=ALL.__eq__):  # the others come first
        if split in skip or (split == ALL and "train" in chosen):
            continue
        others = [file for file in found[split] if _listing(file).foreign]
        files = _preferred([file for file in found[split] if not _listing(file).foreign])
        if others and split != ALL:
            more = f"; nor are {len(others) - 1} other files whose names say {split}" if len(others) > 1 else ""
            lines.append(f"not read: {_listing(others[0]).problem}{more}")
        if len(files) > 1:
            option = "data.train_annotations and data.val_annotations" if split != "test" else "test.datasets"
            raise UserError(
                f"{root} holds {len(files)} annotation files for {'all images' if split == ALL else split}: "
                f"{', '.join(map(str, files))}; say which with {option}"
            )
        if files:
            chosen[split] = files[0]
    if not chosen:
        raise UserError(_no_annotations(root, [file for files in found.values() for file in files]))
    return chosen, lines


def _preferred(files: Sequence[pathlib.Path]) -> Sequence[pathlib.Path]:
    """The files named ``instances_*``; all of them if none is."""
    return [file for file in files if file.name.startswith("instances_")] or files


@dataclasses.dataclass(frozen=True)
class _Listing:
    """The images of a json, or the reason why it cannot be read.

    Attributes:
      names: a sample of the images' file names.
      problem: why the file cannot be read as COCO json; empty if it can.
      foreign: whether the file is no COCO json at all, rather than COCO json with a fault.
    """

    names: tuple[str, ...] = ()
    problem: str = ""
    foreign: bool = False


def _listing(file: pathlib.Path) -> _Listing:
    """The listing of a json; an unchanged file is read only once, since each data set of a run looks for its files."""
    try:
        status = os.stat(file)
    except OSError as error:
        return _Listing(problem=f"{file}: cannot be read ({error.strerror})")
    return _read_listing(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=10_000)
def _read_listing(file, modified, size) -> _Listing:
    del modified, size  # they tell versions of the file apart
    try:
        images = annotations.read_json(file)["images"]
        annotations.refuse_names(images, file)
    except UserError as error:
        return _Listing(problem=str(error), foreign=not _lists_images(file))
    return _Listing(tuple(image["file_name"] for image in images[:: max(1, len(images) // SAMPLES)]))


def _lists_images(file) -> bool:
    """Whether a file that is no COCO json has a list of images, as COCO json that was cut off; True if unreadable."""
    try:
        content = file.read_bytes()
    except OSError:
        return True
    return bool(re.search(rb'"images"\s*:\s*\[', content.replace(b"\0", b"")))  # in UTF-16, too


def walk(root: pathlib.Path, *suffixes: str) -> list[pathlib.Path]:
    """Sorted files below `root` with one of the suffixes; hidden files and folders are left out."""
    found = []
    for folder in _folders(root):
        with os.scandir(folder) as entries:
            found += [
                pathlib.Path(entry.path)
                for entry in entries
                if entry.name.lower().endswith(suffixes) and not entry.name.startswith(".") and _holds(entry.is_file)
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
    """The folders inside a folder, but no hidden ones and no links that lead back to it or above it."""
    try:
        with os.scandir(folder) as entries:
            inside = [e for e in entries if _holds(e.is_dir) and not e.name.startswith((".", "__"))]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    place = pathlib.Path(os.path.realpath(folder))
    return [
        pathlib.Path(e.path) for e in inside if not (e.is_symlink() and place.is_relative_to(os.path.realpath(e.path)))
    ]


def _holds(test: Callable[[], bool]) -> bool:
    """Whether an entry of a folder passes a test of its kind; a link to itself passes none."""
    try:
        return test()
    except OSError:
        return False


def _images(file: pathlib.Path, split: str, root: pathlib.Path) -> str:
    """The folder that holds the most images of a json, by a sample of their names."""
    listing, names = _listing(file), _listing(file).names
    part = "val" if split == "val" else "train"
    if listing.problem:
        raise UserError(f"{listing.problem}; mend it or move it away, or name another with data.{part}_annotations")
    if not names:
        raise UserError(f"{file}: it lists no usable images")
    candidates = _candidates(file, split, root)
    hits = [sum(os.path.isfile(folder / name) for name in names) for folder in candidates]
    option = f"data.{part}_images"
    if not any(hits):
        mend = annotations.backslash_hint(names[0]) or _case_hint(names[0], candidates)
        raise UserError(
            f"{file}: its images, such as {names[0]}, are not below {root}; {mend or f'{option} names their folder'}"
        )
    best = [folder for folder, count in zip(candidates, hits) if count == max(hits)]
    expected = set(_expected(file, split, root))
    others = [folder for folder in best if folder not in expected]
    if best[0] not in expected and len(others) > 1:
        raise UserError(
            f"{file}: its images, such as {names[0]}, are in several folders: {', '.join(map(str, others))}; "
            f"say which with {option}"
        )
    return str(best[0])


def _case_hint(name: str, folders: Iterable[pathlib.Path]) -> str:
    """A hint if a file below one of the folders has this name in other upper and lower case; else empty."""
    for folder in folders:
        path = folder
        for part in pathlib.PurePosixPath(name).parts:
            alike = [entry for entry in _entries(path) if entry.lower() == part.lower()]
            if not alike:
                break
            path /= part if part in alike else alike[0]
        else:
            return f"there is {path}, but upper and lower case count: write its name in file_name as the file has it"
    return ""


def _entries(folder) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _candidates(file, split, root) -> list[pathlib.Path]:
    """Folders that may hold the images of a json, the likeliest first; folders of other splits are left out."""
    own = [folder for folder in _expected(file, split, root) if os.path.isdir(folder)]
    rest = _folders(root) if os.path.isdir(root) else []
    rest = [folder for folder in rest if split == ALL or split_of_json(folder / "x", root) in (split, ALL)]
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


def _no_annotations(root, files) -> str:
    """The message for a folder without COCO annotations."""
    kind = other_kind(root)
    if kind:
        return f"{root} holds {kind}; {CONVERTER} {root} TARGET writes a folder that is read here"
    if files:
        return (
            f"{root} holds no COCO annotation file: {', '.join(map(str, files[:5]))} have no images and categories; "
            "data.train_annotations names one elsewhere"
        )
    return (
        f"{root} holds no annotation file (*.json) within {DEPTH} folders; expected are "
        "annotations/instances_train.json and images/train, an export of Roboflow or CVAT in COCO's form, or one json "
        "for all images"
    )


def other_kind(root: str | os.PathLike) -> str:
    """The format of annotations that the converter reads, with their first file; empty if there are none."""
    root = pathlib.Path(root)
    if xml := [file for file in walk(root, ".xml") if b"<annotation" in _head(file, 1000)]:
        return f"Pascal VOC annotations ({xml[0]})"
    yolo = [*walk(root, "data.yaml", "data.yml"), *(f for f in walk(root, ".txt") if _is_yolo(f))]
    return f"YOLO annotations ({yolo[0]})" if yolo else ""


def _is_yolo(file: pathlib.Path) -> bool:
    """Whether the first line of a text file consists of at least five numbers, as a class and a box do."""
    fields = _head(file, 10_000).partition(b"\n")[0].split()
    return len(fields) >= 5 and all(re.fullmatch(rb"[-+.\deE]+", field) for field in fields)


def _head(file: pathlib.Path, size: int) -> bytes:
    """The first bytes of a file; none if it cannot be read."""
    try:
        with open(file, "rb") as content:
            return content.read(size)
    except OSError:
        return b""
