"""Settings of the documentation site: `make docs` builds it into docs/_build/html, without a network connection.

The pages are the Markdown files of this folder, which also read well on GitHub. `_ext/site.py` fills in what is
generated from the code: the reference, the tutorials (which are the scripts of examples/) and the notebooks.
"""

import logging
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE / "_ext"), str(ROOT / "src")]

import jieba  # noqa: E402

import ndvit  # noqa: E402

jieba.setLogLevel(logging.WARNING)  # it reports the loading of its dictionary

project = "ndvit"
author = copyright = "the ndvit authors"
version = release = ndvit.__version__

# Address of the repository, such as https://github.com/OWNER/ndvit. The workflow sets it; without it, links to files
# outside docs/ are plain text, and there are no links to Colab.
repository = os.environ.get("NDVIT_REPOSITORY", "").rstrip("/")
# Name of this version in the address of the site: "latest", or a tag.
site_version = os.environ.get("NDVIT_DOCS_VERSION", "latest")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "site_pages",
]
exclude_patterns = ["_build", "_ext", "_static", "_templates"]
language = "en"
html_search_language = "zh"  # in fact both languages, see _ext/search.py

# -- Markdown --------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline", "attrs_block", "html_image"]
myst_heading_anchors = 4  # the anchors that GitHub makes
suppress_warnings = ["myst.header"]  # generated tables start below the level of their page

# -- Notebooks -------------------------------------------------------------------------------------------------------

nb_execution_mode = "cache"  # a page is executed again if its code changes; `make docs-clean` forgets all outputs
nb_execution_cache_path = str(HERE / "_build" / "cache")
nb_execution_excludepatterns = os.environ.get("NDVIT_DOCS_SKIP", "").split()  # patterns of pages, for a quick look
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_in_temp = True
nb_merge_streams = True
nb_render_markdown_format = "myst"
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE / "_ext"), str(ROOT / "src"), str(ROOT / "examples")])
os.environ["PYTHONWARNINGS"] = "ignore::DeprecationWarning,ignore:IProgress not found"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
os.environ["JUPYTER_PLATFORM_DIRS"] = "1"

# -- Reference -------------------------------------------------------------------------------------------------------

default_role = "py:obj"  # `name` in a docstring links to the name if it is in the reference, else it is code
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = True
napoleon_use_ivar = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

# -- HTML ------------------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"ndvit {release}"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_context = {"site_version": site_version}
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
        "sidebar/versions.html",
    ]
}
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#1f5f99", "color-brand-content": "#1f5f99"},
    "dark_css_variables": {"color-brand-primary": "#7fb8ea", "color-brand-content": "#7fb8ea"},
}
if repository:
    html_theme_options |= {
        "source_repository": repository,
        "source_branch": "main",
        "source_directory": "docs/",
    }
copybutton_exclude = ".linenos, .gp, .go"
