"""Defines what users describe: jobs, their tasks, and the exceptions that tasks raise.

Any thread may use a job or a task.
"""
