"""Runs a job: processes its events, calls methods on workers, and yields its tasks."""
