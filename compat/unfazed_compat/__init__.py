"""Adapters: the names and promises of other libraries, kept by `unfazed.concurrency`.

One file or folder for each library; none is imported, nor its library needed, unless it is used. Adapters import only
the public `unfazed.concurrency`.
"""
