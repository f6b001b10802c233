"""Runs a job: processes its events, calls methods on workers, and yields its tasks.

Each job has one thread, which calls all user code of the job except that of the tasks. The module
docstrings say what other threads may call.
"""
