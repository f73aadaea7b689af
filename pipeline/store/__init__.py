"""Stores of files: local disks, S3, HTTP and all other protocols of fsspec, with one interface.

`stores.Stores` returns the store of a name, and `base.Store` is the interface. Code outside this package doesn't
distinguish kinds of stores. A new kind is a module with a subclass of `Store` and a line in `stores.KINDS`.
"""
