"""Evaluation: detections of whole data sets, and the scores that pycocotools gives them."""
