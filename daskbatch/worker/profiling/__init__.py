"""Profilers of processes that run tasks: a worker, and its children.

A driver starts and asks them by Dask; see `remote`.
"""
