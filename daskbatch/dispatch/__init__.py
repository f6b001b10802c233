"""Follows started tasks from submission to outcome, by way of an abstract cluster (`Backend`).

Does not know Dask's connections, nor the objects that users hold.
"""
