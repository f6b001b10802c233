"""Runs the command line of daskbatch: ``python -m daskbatch``.

To import it runs nothing.
"""

from __future__ import annotations

import sys

from daskbatch.command_line.main import main

if __name__ == "__main__":
    sys.exit(main())
