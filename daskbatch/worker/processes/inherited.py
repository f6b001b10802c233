"""Applies the settings of the script's interpreter, when the process that forks workers imports it.

The fork server of an embedded cluster imports this module before it forks a worker; see
`interpreter`.
"""

from __future__ import annotations

from daskbatch.worker.processes import interpreter

interpreter.inherit()
