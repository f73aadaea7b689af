"""Evaluation of a captioner on a data set: captions, scores, calibration, comparison, attention maps."""
