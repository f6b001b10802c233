"""A `concurrent.futures` executor whose calls are tasks of a Batch.

This file imports nothing: the public names are in `daskbatch`.
"""
