"""Profiles the processes that run tasks: a worker and its children.

A driver starts and queries the profilers through Dask; see `remote`.
"""
