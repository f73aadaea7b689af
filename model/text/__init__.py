"""Text: splitting captions into words, and words into ids."""
