"""RoI heads: each file has one head's module, targets, losses and part of the detections."""
