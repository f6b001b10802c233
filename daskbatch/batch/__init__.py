"""What a user holds: the Batch, its tasks and their results.

Nothing is imported here: the public names are in `daskbatch` itself.
"""
