"""The version of daskbatch.

Knows nothing else, and so can be read before all else.
"""

__version__ = "0.1.0"
