"""The documentation: ``sphinx-build -W --keep-going docs build/docs``.  Nothing in it is fetched."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import softgrad

project = "softgrad"
author = copyright = "The softgrad developers"
version = release = softgrad.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "formulas", "generated"]
exclude_patterns = ["_ext", "_build", "how-to/_commands.md"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
default_role = "py:obj"
nitpicky = True  # a name in a docstring that leads nowhere is an error
# Types of arguments are prose; what others document would have to be looked up over the network.
nitpick_ignore_regex = [
    ("py:class", r"(?!softgrad\.|Softmax|FitResult|Progress|RowBlocks).*"),
    ("py:.*", r"(sklearn|torch|transformers)\..*|logsumexp|pickle|copy\.deepcopy|generate"),
]
smartquotes = False

html_theme = "furo"
html_title = "softgrad"
html_copy_source = False
html_show_sphinx = False
html_permalinks_icon = "#"

autodoc_typehints = "none"
autodoc_member_order = "alphabetical"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
