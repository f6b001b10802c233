"""The commands of ``python -m daskbatch``: `main` parses them, and each has a module."""
