"""The record in an exported weight file: the options of its network and its classes."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from diou_jax.errors import UserError

KEY = "diou_jax"


@dataclasses.dataclass(frozen=True)
class Record:
    """The network of a weight file.

    Attributes:
      options: values of `option_groups.NETWORK`, by dotted name; a file may have lists in place of tuples.
      class_names: names of its K classes, background first; empty if the file does not have them.
      category_ids: their ids in the annotations, -1 for the background; as many.
    """

    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()

    def content(self) -> dict[str, Any]:
        """The record as plain values, for the file's entry `KEY`."""
        return {
            "options": dict(self.options),
            "class_names": list(self.class_names),
            "category_ids": list(self.category_ids),
        }


def read_record(content: Mapping[str, Any], path: str | os.PathLike) -> Record:
    """The record in the content of a file; an empty one if it has none.

    Args:
      content: the entries of the file by name.
      path: the file, for messages.

    Raises:
      UserError: if the file has an entry `KEY` that is no record.
    """
    if KEY not in content:
        return Record()
    found = content[KEY]
    try:
        options = {str(name): value for name, value in found["options"].items()}
        names, ids = tuple(map(str, found["class_names"])), tuple(map(int, found["category_ids"]))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: its entry {KEY!r} is damaged ({type(error).__name__}: {error})") from None
    if len(names) != len(ids):
        raise UserError(f"{path}: its entry {KEY!r} is damaged ({len(names)} class names and {len(ids)} ids)")
    return Record(options, names, ids)
