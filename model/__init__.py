"""The captioner: everything between pixels and words. Knows nothing of Ray, of stores or of tables."""
