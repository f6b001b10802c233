"""Decides which task of a job runs next, and where. Pure: no threads, no clock, no cluster."""
