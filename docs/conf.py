"""Settings of the site. scripts/make_site.py writes the pages that Sphinx is given, and calls it."""

import configparser
import shutil
from pathlib import Path

import ziamath
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).parent
config = configparser.ConfigParser(delimiters=["="])
config.read(HERE.parent / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

project = settings["title"]
author = settings["author"]
copyright = settings["copyright"]
version = release = settings["version"]
language = "en"
nitpicky = True
add_module_names = False
extensions = ["myst_nb"]

nb_execution_mode = "off"  # the outputs are those that stand in the notebooks
nb_render_markdown_format = "myst"
nb_number_source_lines = False
nb_code_prompt_show = "Show the code: {type}"
nb_code_prompt_hide = "Hide the code: {type}"
myst_enable_extensions = ["amsmath", "attrs_block", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # some chapters go from their title to a third level; Sphinx closes the gap itself

html_theme = "furo"
pygments_dark_style = "github-dark"
smartquotes_action = "qe"  # an option keeps its two hyphens
html_title = settings["title"]
html_baseurl = f"{settings['doc_host']}{settings['doc_baseurl']}/"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_math_renderer = "mathml"
html_theme_options = {"navigation_with_keys": True}

logger = logging.getLogger(__name__)


def as_mathml(node: nodes.Element, display: str) -> str:
    """An equation as MathML, which browsers draw themselves: no script, nothing to load, and it can be read aloud."""
    tex = node.astext().replace("{aligned}", "{split}")
    found = convert(tex, display=display)
    if "<mi>&</mi>" in found or "<mi>\\" in found or "<mtext>\\" in found:
        logger.warning("latex2mathml cannot read %r; write the equation in another way", tex, location=node)
    return found


def inline(self: HTML5Translator, node: nodes.Element) -> None:
    """Write an equation within a line."""
    self.body.append(as_mathml(node, "inline"))
    raise nodes.SkipNode


def block(self: HTML5Translator, node: nodes.Element) -> None:
    """Write an equation on lines of its own."""
    self.body.append(f'<div class="math">{as_mathml(node, "block")}</div>\n')
    raise nodes.SkipNode


def copy_font(app: Sphinx, error: Exception | None) -> None:
    """Lay the font of the equations beside the pages."""
    if error is None:
        font = Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"
        shutil.copy(font, Path(app.outdir) / "_static" / font.name)


def setup(app: Sphinx) -> None:
    """Tell Sphinx of the equations."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("build-finished", copy_font)
