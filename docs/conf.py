"""Sphinx. Built with warnings as errors: python -m sphinx -W -n docs build/docs"""

project = "batchgrow"
copyright = "the batchgrow authors"
extensions = ["myst_parser", "sphinx.ext.mathjax", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "batchgrow"
html_theme_options = {"light_css_variables": {"code-font-size": "75%"}}  # 90 columns

myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "dollarmath"]
default_role = "code"  # docstrings mark code with single backticks
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
maximum_signature_line_length = 88

# Types of other libraries are named and not linked: the build needs no network.
nitpick_ignore_regex = [
    (r"py:.*", r"(jax|jnp|np|numpy|optax|flax|nn|epath|etils|ml_collections)(\..*)?"),
    (
        r"py:.*",
        r"(collections|concurrent|pathlib|typing)\..*|bool|bytes|dict|float|int|str|range|tuple|None",
    ),
    (r"py:class", r"batchgrow\.compile\.Key"),  # a type variable
]
