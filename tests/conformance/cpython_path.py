"""Makes CPython's own tests importable as `test`: the running Python's, else those in `cpython/`.

Import this module before anything from `test`: a process has only one package of that name.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent

#: The tests that the running Python was installed with: all, some or none.
SHIPPED = Path(sysconfig.get_path("stdlib"), "test")

if not (SHIPPED / "test_concurrent_futures").is_dir():
    sys.path.insert(0, str(HERE / "cpython"))
