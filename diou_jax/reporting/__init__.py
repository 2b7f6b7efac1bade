"""The output for people: log lines, TensorBoard, curves, pictures, progress bars."""
