"""A fingerprint that tells whether a data set has changed."""

import hashlib

import numpy as np

from diou_jax.data.dataset import Dataset


def fingerprint(dataset: Dataset) -> dict[str, int | str]:
    """Numbers of images and boxes, and a digest of ground truth and proposals without pixels and paths; JSON values."""
    digest = hashlib.blake2b(digest_size=16)
    records = dataset.records
    columns = [records.heights, records.widths, records.offsets, records.boxes, records.classes, records.crowd]
    if records.outlines is not None:
        columns += [records.outlines.points, records.outlines.parts, records.outlines.objects]
    for column in columns:
        digest.update(np.ascontiguousarray(column).tobytes())
    if (table := dataset.proposals) is not None:
        for column in (table.starts, table.stops, table.boxes):
            digest.update(np.ascontiguousarray(column).tobytes())
    digest.update(repr((records.image_ids.tolist(), dataset.class_names)).encode())
    return {"images": len(dataset), "boxes": len(records.boxes), "digest": digest.hexdigest()}
