"""Settings of the documentation site (``make docs``)."""

from __future__ import annotations

import os
from pathlib import Path

from airflow_provider_luma import __version__

# The API reference imports Airflow, which writes its settings somewhere.
os.environ["AIRFLOW_HOME"] = str(Path(__file__).parents[1] / "build/airflow")

project = "airflow-provider-luma"
author = "The airflow-provider-luma authors"
project_copyright = "2026, The airflow-provider-luma authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["build"]

autodoc_typehints = "none"  # every :param: says what it takes, in words
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = f"airflow-provider-luma {__version__}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#5b3fd6",
        "color-brand-content": "#5b3fd6",
    },
    "dark_css_variables": {
        "color-brand-primary": "#b9a8ff",
        "color-brand-content": "#b9a8ff",
    },
}
