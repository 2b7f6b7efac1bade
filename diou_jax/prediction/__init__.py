"""Prediction: the callable `Detector`, and detection in image files."""
