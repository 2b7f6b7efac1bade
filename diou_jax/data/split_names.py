"""The split, such as "train", that the names of files and folders stand for."""

import pathlib
import re

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

ALL = "all"  # the split of files whose names stand for no other


def split_of_json(file: pathlib.Path, root: pathlib.Path) -> str:
    """The split that a word of the file's name or else of its folders' names below `root` stands for, else `ALL`."""
    for part in (file.stem, *reversed(file.relative_to(root).parent.parts)):
        splits = {ALIASES[word] for word in re.findall("[a-z]+", part.lower()) if word in ALIASES}
        if len(splits) == 1:
            return splits.pop()
    return ALL


def split_of_image(path: pathlib.Path, source: pathlib.Path) -> str:
    """The split that the outermost folder between `source` and an image, or its annotations, stands for, else `ALL`.

    Unlike the name of a json it must be an alias and at most a year, "train2017": the folders inside are named after
    anything, also after a class of vehicles, "train".
    """
    names = (re.sub(r"[-_]?\d{4}$", "", part.lower()) for part in path.relative_to(source).parts[:-1])
    return next((ALIASES[name] for name in names if name in ALIASES), ALL)
