"""Computes what a report tells, from the records of a run: pure functions of frozen records."""
