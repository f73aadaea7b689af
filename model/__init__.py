"""The captioner: networks, search, data, training and evaluation. Knows nothing of Ray, stores or tables."""
