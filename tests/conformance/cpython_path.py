"""Makes CPython's own tests importable as `test`: the running Python's, else those in `cpython/`.

Does not know what is in them. To be imported before anything of `test` is: there is one
package of that name in a process.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent

#: What the running Python has of its own tests; it may be nothing, or not all.
SHIPPED = Path(sysconfig.get_path("stdlib"), "test")

if not (SHIPPED / "test_concurrent_futures").is_dir():
    sys.path.insert(0, str(HERE / "cpython"))
