"""Reads YOLO: a text file per image with a line per object; boxes are shares of the image's width and height."""

import collections
import functools
import itertools
import math
import os
import pathlib

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
from diou_jax.data.dataset import BadImageError, Faults
from diou_jax.data.split_names import ALIASES, split_of_image
from diou_jax.errors import UserError

NAMES = ("classes.txt", "obj.names", "classes.names")
SLACK = 0.01  # rounding may move a share this far out of 0 to 1


def recognises(source: pathlib.Path) -> bool:
    """Whether a folder holds class names or a folder of labels in YOLO's format."""
    labels = any(path.is_dir() for path in (*source.glob("labels"), *source.glob("*/labels")))
    return labels or bool(_yaml_file(source) or _lists_of_names(source))


def read(source: pathlib.Path) -> AnnotatedFolder:
    """Reads all images of a folder; an image without a text file has no objects.

    A polygon becomes the box around it and the object's outline. Keypoints are left out; the box beside them is read.

    The splits are those of data.yaml; without data.yaml they follow from the names of folders.

    Raises:
      UserError: if a file or a line cannot be read, a path in data.yaml does not exist, or globox is missing.
    """
    yaml = _yaml(source)
    names = _names(source, yaml)
    problems, remarks = Problems(), Faults()
    paths = _splits(source, yaml)
    labels = {image: _label_file(image, source) for images in paths.values() for image in images}
    if labels and not any(file.is_file() for file in labels.values()):
        raise UserError(f"{source}: none of its {len(labels)} images has a text file, in labels or beside the image")
    box_of = functools.partial(_box, names=names, keypoints=_keypoints(yaml))
    found = {
        split: [_image(image, labels[image], box_of, problems) for image in tqdm(images, desc=split, leave=False)]
        for split, images in paths.items()
    }
    problems.refuse()
    splits = {split: [image for image in images if image] for split, images in found.items()}
    without = [str(image) for image, file in labels.items() if not file.is_file()]
    remarks.add("images without a text file, taken as images without objects", *without)
    readers = collections.Counter(labels.values())
    shared = [str(image) for image, file in labels.items() if readers[file] > 1 and file.is_file()]
    remarks.add("images that share their text file with another, whose objects they were given", *shared)
    remarks.add("text files without an image, left out", *map(str, _orphans(source, labels)))
    return AnnotatedFolder(splits, {name: number + 1 for number, name in names.items()}, remarks)


def _yaml_file(source) -> pathlib.Path | None:
    """data.yaml, or else the only yaml file with class names; None if there is none."""
    files = [path for path in sorted(source.glob("*.y*ml")) if path.suffix in (".yaml", ".yml") and path.is_file()]
    files = [path for path in files if path.stem == "data"] or [
        path for path in files if any(line.startswith("names:") for line in read_text(path).splitlines())
    ]
    if len(files) > 1:
        raise UserError(f"{files[0]} and {files[1]} both describe a data set; move one away")
    return files[0] if files else None


def _lists_of_names(source) -> list[pathlib.Path]:
    """Files of class names, in the folder itself or beside the labels."""
    return sorted(path for name in NAMES for path in source.rglob(name) if path.is_file())


def _yaml(source) -> dict:
    """The content of data.yaml, with its path as "file"; empty if there is no data.yaml."""
    file = _yaml_file(source)
    if file is None:
        return {}
    try:
        import yaml
    except ImportError:
        raise UserError("data.yaml is read by PyYAML: pip install 'diou-jax[convert]'") from None
    try:
        content = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not a yaml file ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: it must hold train, val and names")
    return content | {"file": file}


def _names(source, yaml) -> dict[int, str]:
    """Class names by number, from data.yaml or a text file of names."""
    lists = _lists_of_names(source)
    if yaml.get("names") is not None:
        file, names = yaml["file"], yaml["names"]
        pairs = list(names.items() if isinstance(names, dict) else enumerate(names if isinstance(names, list) else ()))
    elif lists:
        file = lists[0]
        for other in lists[1:]:
            if read_text(other).split() != read_text(file).split():
                raise UserError(f"{file} and {other} name different classes; delete the wrong one")
        pairs = list(enumerate(read_text(file).rstrip().splitlines()))
    else:
        raise UserError(f"{source}: the classes have no names; write them to {source / 'classes.txt'}, one a line")
    if not pairs or not all(str(number).isdecimal() and _is_name(name) for number, name in pairs):
        raise UserError(
            f"{file}: names must be a list of class names, or number: name for each class; "
            "yes, no, on and off in quotes"
        )
    result = {int(number): str(name).strip() for number, name in sorted(pairs, key=lambda pair: int(pair[0]))}
    if len(set(result.values())) < len(pairs):
        raise UserError(f"{file}: two classes have the same number or name; each must be another")
    return result


def _keypoints(yaml) -> int:
    """How many numbers of each line, after the box, are keypoints, by ``kpt_shape`` of data.yaml; 0 without it."""
    shape = yaml.get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(side) is int and side > 0 for side in shape)):
        raise UserError(f"{yaml['file']}: kpt_shape is {shape!r:.60}; it must be two numbers, such as [17, 3]")
    return math.prod(shape)


def _is_name(name):
    return isinstance(name, (str, int, float)) and not isinstance(name, bool) and bool(str(name).strip())


def _splits(source, yaml) -> dict[str, list[pathlib.Path]]:
    """Image files by split."""
    splits: dict[str, list[pathlib.Path]] = {}
    for key, split in ALIASES.items():
        places = yaml.get(key)
        if not places:
            continue
        for place in places if isinstance(places, list) else [places]:
            splits.setdefault(split, []).extend(_place(yaml, key, place))
    if not splits:
        for image in files_below(source, IMAGES):
            splits.setdefault(split_of_image(image, source), []).append(image)
    return {split: list(dict.fromkeys(images)) for split, images in splits.items()}


def _place(yaml, key, place) -> list[pathlib.Path]:
    """The images of an entry of data.yaml: a folder, a list of paths or one image."""
    if not isinstance(place, str):
        raise UserError(f"{yaml['file']}: {key} is {place!r}; it must be a folder, or a text file that lists images")
    beside = yaml["file"].parent
    base = beside / os.path.expanduser(str(yaml.get("path") or ""))
    # Some exporters write ../train/images although data.yaml lies beside train.
    candidates = [base / place, beside / place, beside / place.removeprefix("../")]
    path = next((path for path in candidates if os.path.isdir(path) or os.path.isfile(path)), None)
    if path is None:
        raise UserError(f"{yaml['file']}: {key} leads to {base / place}, which does not exist; correct it or delete it")
    path = pathlib.Path(os.path.normpath(path))
    if path.is_dir():
        images = files_below(path, IMAGES)
    elif path.suffix.lower() in IMAGES:
        images = [path]
    else:
        lines = enumerate(read_text(path).splitlines(), start=1)
        images = [_listed(path, base, number, line.strip()) for number, line in lines if line.strip()]
    if not images:
        raise UserError(f"{yaml['file']}: {key} leads to {path}, which holds no images; correct it or delete it")
    return images


def _listed(file, base, number, name):
    """An image of a list; its path is absolute, or relative to the list's folder or to `path` of data.yaml."""
    candidates = [pathlib.Path(os.path.normpath(folder / name)) for folder in (file.parent, base)]
    for path in candidates:
        if os.path.isfile(path):
            return path
    raise UserError(f"{file}, line {number}: {candidates[0]} does not exist")


def _label_file(image: pathlib.Path, source: pathlib.Path) -> pathlib.Path:
    """The text file of an image: below "labels" in place of "images", in "labels" beside the image, or beside it.

    Folders above `source` do not count, unless data.yaml names images outside of it.
    """
    candidates = [image.parent / "labels" / f"{image.stem}.txt"]
    folders = image.parent.parts
    parent, top = (pathlib.Path(os.path.abspath(path)) for path in (image.parent, source))
    if parent.is_relative_to(top):
        folders = folders[len(folders) - len(parent.relative_to(top).parts) :]
    if "images" in folders:
        inside = folders[::-1].index("images")  # the number of folders below "images"
        labels = image.parents[inside].with_name("labels")
        rest = folders[len(folders) - inside :]
        candidates = [labels.joinpath(*rest, f"{image.stem}.txt"), labels / f"{image.stem}.txt", *candidates]
    return next((path for path in candidates if path.is_file()), image.with_suffix(".txt"))


def _orphans(source, labels) -> list[pathlib.Path]:
    used = set(labels.values())
    folders = {file.parent for file in used if file.is_file()} - {source}
    texts = [path for folder in sorted(folders) for path in sorted(folder.glob("*.txt"))]
    return [path for path in texts if path not in used and path.name not in NAMES]


def _image(image, label_file, box_of, problems) -> AnnotatedImage | None:
    try:
        size = width_and_height(image)
    except BadImageError as error:
        return problems.add(str(error))
    boxes = []
    if label_file.is_file():
        try:
            lines = read_text(label_file).splitlines()
        except UserError as error:
            return problems.add(str(error))
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    boxes.append(box_of(line, size))
                except ValueError as error:
                    problems.add(f"{label_file}, line {number}: {error}")
    return AnnotatedImage(image, size, tuple(boxes))


def _box(line, size, names, keypoints=0) -> Box:
    """The box of one line, perhaps with keypoints; a faulty line raises a ValueError that names the fault."""
    bounding_box = bounding_box_class()
    try:
        number, *shares = map(float, line.split())
    except ValueError:
        raise ValueError(f"{line.strip()[:60]!r} has something other than numbers") from None
    if keypoints:
        if len(shares) != 4 + keypoints:
            raise ValueError(
                f"{1 + len(shares)} numbers; by kpt_shape of data.yaml there must be a class, a box of 4 and "
                f"{keypoints} numbers of keypoints"
            )
        shares, line = shares[:4], " ".join(line.split()[:5])
    polygon = len(shares) >= 6 and len(shares) % 2 == 0
    if len(shares) != 4 and not polygon:
        raise ValueError(f"{1 + len(shares)} numbers; there must be a class and a box of 4, or a polygon of 6 or more")
    if number not in names:
        raise ValueError(f"class {line.split()[0]} has no name; there are {len(names)}, the first class is 0")
    if not all(-SLACK <= share <= 1 + SLACK for share in shares):
        raise ValueError("coordinates must be shares of the image, from 0 to 1")
    try:
        box = (bounding_box.from_yolo_seg if polygon else bounding_box.from_yolo_v5)(line, image_size=size)
    except AssertionError:
        box = None
    if box is None or not is_finite(box):
        raise ValueError("width and height must not be negative")
    outline = tuple(share * side for share, side in zip(shares, itertools.cycle(size))) if polygon else ()
    return Box(names[int(number)], (box.xmin, box.ymin, box.width, box.height), polygon=outline)
