"""Files that hold many images: archives and Parquet files. Each kind is one subclass of `base.Container`."""
