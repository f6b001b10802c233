"""Defines what users describe: jobs, their tasks, and the exceptions that tasks raise."""
