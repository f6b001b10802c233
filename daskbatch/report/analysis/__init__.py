"""Computes what a report tells, from the records of a run: pure functions of frozen records.

Any thread may call them. Times are seconds since the epoch, durations seconds.
"""
