"""A block of tasks, run in a child process that can be killed.

Nothing is imported here: a child process starts quickly.
"""
