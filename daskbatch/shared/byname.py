"""Keeps dictionaries readable that were saved when `data.portable_keys` had this name.

They have a key with a class of `__main__` as a call of these functions, by this module's path.
"""

from daskbatch.shared.data.portable_keys import _either, _named

__all__ = ["_either", "_named"]
