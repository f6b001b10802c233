"""The worker's side of dictionaries and queues: shards, their copies, what goes to disk.

Does not know Dask.
"""
