"""Keeps saved dictionaries readable that earlier versions of daskbatch wrote.

`data.portable_keys` had this module's path then. In the files, a key with a class of `__main__` is
a call of one of these functions, by that path.
"""

from daskbatch.shared.data.portable_keys import _either, _named

__all__ = ["_either", "_named"]
