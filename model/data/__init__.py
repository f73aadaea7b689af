"""Caption data sets: reading data files, selecting splits, loading pictures."""
