"""Configuration of the documentation site; `make docs` builds it.

The sources are those of the whole project: README.md, docs/, notebooks/ and examples/README.md, so
that the links between them are the same in a checkout and on the site.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT))

project = "daskbatch"
author = "the daskbatch developers"
project_copyright = "2026, the daskbatch developers"
release = re.search(r'__version__ = "(.*)"', (PROJECT / "daskbatch/_version.py").read_text())[1]
version = release

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/**",
    "notebooks/*.ipynb",
    "examples/README.md",
]
exclude_patterns = ["docs/_*"]

# The notebooks are stored with their outputs; tests run them again.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Classes list their members below their own text, not in a table on pages of their own.
numpydoc_show_class_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have the types
autodoc_default_options = {"members": True, "inherited-members": False}
default_role = "py:obj"
# Names in backticks are links where they name something of daskbatch, and plain elsewhere.
nitpick_ignore_regex = [("py:obj", ".*"), ("py:class", r"(?!daskbatch).*"), ("py:exc", ".*")]

html_theme = "pydata_sphinx_theme"
html_title = "daskbatch"
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_extra_path = ["_extra"]
html_copy_source = False
html_show_sourcelink = False
