"""Where files are: local disks, S3, HTTP and whatever else fsspec opens, behind one protocol.

`stores.Stores` finds the store of a name, `base.Store` says what every kind can do. Only this package knows kinds:
a new one is a module with a subclass of `Store` and a line in `stores.KINDS`.
"""
