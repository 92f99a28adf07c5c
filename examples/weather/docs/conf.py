"""How Sphinx makes the documentation: `sphinx-build docs docs/_build`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

project = "weather"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "basic"
autodoc_default_options = {"members": True, "special-members": "__enter__, __exit__"}
