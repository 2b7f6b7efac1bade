"""Prediction: `Detector`, the callable, and detection in image files."""
