"""The way onto a Dask cluster, and back.

Does not know what users hold, nor who shares what on the cluster.
"""
