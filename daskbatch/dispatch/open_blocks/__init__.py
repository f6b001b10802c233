"""Sends tasks of fine-grained graphs to open blocks, each as soon as it is ready.

A *held* task waits at the client. An *open block* is a Dask key that runs and receives members on
a direct connection. The dispatcher calls everything here with its lock held.
"""
