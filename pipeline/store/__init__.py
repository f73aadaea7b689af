"""Where files are: local disks, S3, HTTP and whatever else fsspec opens, behind one protocol."""
