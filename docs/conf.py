"""Sphinx's settings for the site of `make docs`.

The pages are the Markdown files that GitHub shows, where they stand, so that one link serves both;
the API pages are made of the docstrings.
"""

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # Our extension; data and convert, run from the clone.

project = "Pixel Perfect"
author = copyright = "Pixel Perfect contributors"
release = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "extension"]
root_doc = "README"
include_patterns = ["README.md", "docs/*.md", "docs/api/*.rst", "benchmarks/RESULTS.md"]
exclude_patterns = [".*", "checkpoints", "datasets", "runs", "site", "**/__pycache__"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # As on GitHub.

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
# What only the converter, the tests and some extras need.
autodoc_mock_imports = [
    "cv2",
    "nibabel",
    "safetensors",
    "segment_anything",
    "torch",
    "torchvision",
    "transformers",
    "wandb",
]
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 100
add_module_names = False
smartquotes = False

nitpicky = True
# Types in signatures: their own sites are not read, so that no network is needed.
nitpick_ignore_regex = [("py:.*", ".*")]

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_additional_pages = {"index": "start.html"}  # A browser given the folder opens the README.
templates_path = ["_templates"]
html_math_renderer = "mathml"
