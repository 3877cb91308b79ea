"""How the pages are built: ``make docs``."""

project = "Remit and Doorman"
author = "The Remit and Doorman maintainers"
project_copyright = "2026, the Remit and Doorman maintainers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
html_theme = "furo"
html_title = "Remit and Doorman"
exclude_patterns = ["_build", "examples"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
nitpicky = False
intersphinx_mapping: dict[str, tuple[str, str | None]] = {}
default_role = "code"
