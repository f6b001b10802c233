"""Clusters that grow and shrink: how many workers tasks could use, and whether some are on order.

- `demand_report` is the client's part: it reports what its unfinished tasks could use.
- `demands` is the scheduler's part, which Dask's adaptive clusters ask for their target.
- `orders` finds out whether a cluster object has workers that have not joined yet.
"""
