"""How Sphinx makes the site of the documentation; ``docs/build_site.py`` calls it.

Sphinx with MyST and furo, as TransformerLens has it: docstrings here are in Sphinx's own language already, and pages
stay the Markdown that GitHub shows.
"""

from typing import Any

from sphinx.application import Sphinx

import memscope

project = "memscope"
author = "the authors of memscope"
version = release = memscope.__version__
root_doc = "README"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"memscope {release}"
html_copy_source = False
html_show_copyright = False
highlight_language = "none"  # blocks that name no language are commands and output
myst_heading_anchors = 4  # anchors as on GitHub
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_use_rtype = False


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", open_attribute, priority=400)  # before napoleon


def open_attribute(app: Sphinx, what: str, name: str, value: object, options: dict[str, Any], lines: list[str]) -> None:
    """An empty comment first, or napoleon would take the words before a colon for a type."""
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]
