"""The worker's side of dictionaries and queues: their state, its backups, and what is on disk.

Nothing here imports Dask.
"""
