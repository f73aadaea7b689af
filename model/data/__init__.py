"""Caption data sets: reading them, choosing splits, loading their pictures."""
