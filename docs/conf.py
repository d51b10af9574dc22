"""Sphinx's settings for the documentation."""

from importlib.metadata import version as installed_version

project = "trio_mlxgate"
author = "the trio_mlxgate authors"
copyright = "2026, the trio_mlxgate authors"  # noqa: A001 - Sphinx's name for it
release = installed_version("trio-mlxgate")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib_trio",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "newsfragments", "examples"]
html_theme = "furo"
html_title = "trio_mlxgate"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Defaults as they stand in the code, not as they print.
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Short names in signatures: the classes are re-exported from the package itself.
add_module_names = False
default_role = "code"
