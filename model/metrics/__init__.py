"""Caption metrics, and what a confidence is worth. Knows no captioner."""
