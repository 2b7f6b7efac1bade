"""The files of a work folder: the config, the metrics, and the lock that keeps a second run out."""
