"""What is pickled, and how: functions, arguments, results and exceptions.

Does not know tasks, workers or Dask. Nothing is imported here: a child process starts quickly.
"""
