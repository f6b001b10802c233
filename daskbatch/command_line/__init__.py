"""The commands of ``python -m daskbatch``: `main` parses them, and each has a module.

They print what they find, and return an exit code. They run in the main thread.
"""
