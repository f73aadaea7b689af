"""Captions as other programs want them: one file of lines, sidecar files, WebVTT, or shards for training."""
