"""Adapters: the names and promises of other libraries, kept by `unfazed.concurrency`.

Each library has one file or folder. An adapter is imported only by those who use it, and only they need its library.
Adapters import the public names of `unfazed.concurrency`, and no others.
"""
