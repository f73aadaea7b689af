"""The batch job: images in, Parquet out. `pipeline/caption.py` shows the whole pipeline on one screen."""
