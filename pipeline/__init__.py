"""Images in, Parquet out. `pipeline/caption.py` shows the whole shape on one screen."""
