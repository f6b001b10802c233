"""The names that saved dictionaries of earlier versions were written with.

A key that holds a class of `__main__` was saved as a call of these, by this module's name.
"""

from daskbatch.shared.data.portable_keys import _either, _named

__all__ = ["_either", "_named"]
