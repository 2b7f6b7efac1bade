"""Analysis of COCO detections: where AP comes from, where it is lost, and how sure it is. numpy without a device.

Letters of shapes: D detections, G true objects, I images, N classes (without a background), T IoU thresholds, A area
ranges, S resamples or other sets of weights. A number that is not defined is NaN: the AP of a class without objects.
"""
