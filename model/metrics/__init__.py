"""Metrics of captions and of confidences. Knows no captioner."""
