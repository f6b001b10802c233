"""A `concurrent.futures` executor whose calls are tasks of a Batch.

Nothing is imported here: the public names are in `daskbatch` itself.
"""
