"""Decides which task of a job runs next, and on which worker. Pure.

One thread at a time may use the objects of a job. They start no thread, read no clock and need no
cluster: the caller passes the time and the workers.
"""
