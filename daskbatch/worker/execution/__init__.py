"""A block of tasks, run in a thread of a worker or of a child process.

Nothing is imported here: a child process must start quickly.
"""
