"""Dask's side: connections to a cluster, and the plugins of its scheduler and nannies.

Does not know what users hold.
"""
