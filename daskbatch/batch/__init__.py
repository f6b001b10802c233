"""The user's objects: the Batch, its tasks, and the handles of their results.

This file imports nothing, so that a child process starts fast. The public names are in `daskbatch`.
"""
