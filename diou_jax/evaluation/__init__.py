"""Evaluation: detection in whole data sets, and pycocotools' scores of the result."""
