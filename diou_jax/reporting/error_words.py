"""Words for the kinds of errors, the same in all places of a page."""

from diou_jax.analysis.errors import Kind

NAMES = {
    Kind.CLASS: "wrong class",
    Kind.PLACE: "wrong place",
    Kind.BOTH: "wrong class and place",
    Kind.DUPLICATE: "duplicate",
    Kind.BACKGROUND: "background",
    Kind.MISSED: "missed",
    Kind.RIGHT: "right",
    Kind.IGNORED: "ignored",
}

MEANINGS = {
    Kind.CLASS: "The box fits an object of another class. Mended: the detection gets the right class.",
    Kind.PLACE: "The class is right, but the box overlaps the object too little, by an IoU of 0.1 or more. Mended: the "
    "detection gets the object's box.",
    Kind.BOTH: "The box is near an object of another class, and does not fit. Mended: the detection is removed.",
    Kind.DUPLICATE: "The box fits an object that a detection with a higher score has found. Mended: it is removed.",
    Kind.BACKGROUND: "The box overlaps no object, or hardly one. Mended: the detection is removed.",
    Kind.MISSED: "No detection found the object, not even in the wrong place or with the wrong class. Mended: the "
    "object no longer counts.",
}

# The end of "Most AP is lost to ...", and a phrase for mended errors of the kind.
LOSSES = {
    Kind.CLASS: ("boxes with the wrong class", "with the right classes"),
    Kind.PLACE: ("boxes in the wrong place", "with the right boxes"),
    Kind.BOTH: ("boxes with the wrong class in the wrong place", "without them"),
    Kind.DUPLICATE: ("duplicates, further boxes on objects that are found already", "without them"),
    Kind.BACKGROUND: ("detections on the background", "without them"),
    Kind.MISSED: ("objects that are missed", "if they did not count"),
}
