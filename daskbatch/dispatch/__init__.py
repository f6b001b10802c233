"""The way onto a Dask cluster, and back."""
