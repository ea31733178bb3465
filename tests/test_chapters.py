"""The book holds together: chapters in order, links that lead somewhere, names that exist."""

import ast
import contextlib
import dataclasses
import io
import json
import re
import tomllib
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from rethink_imagenet.detection.conventions import CONVENTIONS, Conventions

ROOT = Path(__file__).parent.parent
PAPER = ROOT.parent / "shared" / "reference" / "paper.txt"
CHAPTERS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
SHOWS = re.compile(r"(?m)^print\(|^\w+, \w+ = plt\.subplots\(|^figure\Z")  # a cell that does has something to show
HEADING = re.compile(r"(?m)^(#+) (.+)$")
LINK = re.compile(r"\[([^]]+)\]\(([^)\s#]+)(?:#[^)]*)?\)")
# Names of other systems; everything else in backticks is ours or in our code.
OF_OTHERS = {
    "ASPECT_GROUPING", "ConvGN", "FREEZE_AT", "GROUP_NORM", "INFERENCE_MIN_SIZE", "NORMALIZE_BY_VISIBLE_KEYPOINTS",
    "NUM_GROUPS", "PIXEL_STD", "POOLER_SAMPLING_RATIO", "TRAIN", "USE_FLIPPED", "stages", "stages_0", "0",
}  # fmt: skip


@cache
def cells_of(notebook: Path, kind: str) -> list[str]:
    """The source of each cell of a kind, "markdown" or "code"."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def links_of(*texts: str) -> list[tuple[str, str]]:
    """Text and target of each link."""
    return [link for text in texts for link in LINK.findall(text)]


@cache
def words_of_code() -> set[str]:
    """Every word of every code cell, test, script and benchmark."""
    files = [path for folder in ("tests", "scripts", "benchmarks") for path in (ROOT / folder).glob("*.*")]
    texts = [path.read_text(encoding="utf-8") for path in files]
    texts += [source for notebook in (ROOT / "nbs").glob("*.ipynb") for source in cells_of(notebook, "code")]
    return {word for text in texts for word in re.findall(r"[A-Za-z_]\w*", text)}


@cache
def defined_in(notebook: Path) -> set[str]:
    """The names that the code cells of a chapter define, methods and fields of classes among them."""
    names = set()
    for source in cells_of(notebook, "code"):
        for node in ast.walk(ast.parse(re.sub(r"(?m)^[%!].*$", "", source))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


@pytest.mark.parametrize("number", range(1, len(CHAPTERS)), ids=lambda i: CHAPTERS[i].stem)
def test_a_chapter_opens_with_a_link_to_what_it_takes_up(number: int) -> None:
    opening = [text for text in cells_of(CHAPTERS[number], "markdown") if not text.startswith("[![")][:2]
    earlier = {chapter.name for chapter in CHAPTERS[:number]}
    assert {target for _, target in links_of(*opening)} & earlier


@pytest.mark.parametrize("number", range(len(CHAPTERS) - 1), ids=lambda i: CHAPTERS[i].stem)
def test_a_chapter_closes_with_a_link_to_the_next(number: int) -> None:
    last = json.loads(CHAPTERS[number].read_text(encoding="utf-8"))["cells"][-1]
    assert last["cell_type"] == "markdown"
    assert CHAPTERS[number + 1].name in {target for _, target in links_of("".join(last["source"]))}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_can_be_opened_elsewhere(chapter: Path) -> None:
    _, badges, install = json.loads(chapter.read_text(encoding="utf-8"))["cells"][:3]
    text = "".join(badges["source"])
    for place in ("colab.research.google.com/github/", "mybinder.org/v2/gh/"):
        assert re.search(rf"\]\(https://{re.escape(place)}[^)]*nbs/{chapter.name}\)", text), f"no link to {place}"
    assert re.search(r"runs in (a few seconds|about \d+ (s|min)) on two cores", text), "no running time"
    assert "".join(install["source"]).startswith("#| eval: false\n")
    assert "pip install" in "".join(install["source"]) and install["cell_type"] == "code"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_what_a_chapter_draws_and_prints_is_stored(chapter: Path) -> None:
    """The site runs nothing: it shows what the notebooks hold."""
    stored = [cell for cell in json.loads(chapter.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    for cell in stored:
        source = "".join(cell["source"])
        if not re.search(r"#\|\s*(eval: false|notest|slow|gpu)", source) and SHOWS.search(source):
            assert cell["outputs"], source[:300]
    data = [output.get("data", {}) for cell in stored for output in cell["outputs"]]
    assert any("image/png" in one or "<svg" in "".join(one.get("text/html", "")) for one in data), "no picture"


def test_the_table_of_conventions_is_todays() -> None:
    """What is stored is what its cell prints."""
    cells = json.loads((ROOT / "nbs/38_conventions.ipynb").read_text(encoding="utf-8"))["cells"]
    (cell,) = [cell for cell in cells if "".join(cell["source"]).startswith("def shown(")]
    names = {"fields": dataclasses.fields, "Conventions": Conventions, "CONVENTIONS": CONVENTIONS}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec("".join(cell["source"]), names)
    assert "".join(cell["outputs"][0]["text"]) == printed.getvalue()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_headings_go_down_by_one_level(chapter: Path) -> None:
    """A reader who has headings read aloud hears no level that is missing."""
    found = [(len(one), told) for text in cells_of(chapter, "markdown") for one, told in HEADING.findall(text)]
    assert found[0][0] == 1
    wrong = [told for (above, _), (level, told) in pairwise(found) if level > above + 1]
    assert not wrong, wrong


@pytest.mark.parametrize("notebook", [*CHAPTERS, ROOT / "nbs/index.ipynb"], ids=lambda path: path.stem)
def test_links_lead_somewhere(notebook: Path) -> None:
    for text, target in links_of(*cells_of(notebook, "markdown")):
        if re.match(r"https?://", target):
            continue
        path = (ROOT if notebook.stem == "index" else notebook.parent) / target  # the index becomes README.md
        assert path.exists(), f"[{text}]({target})"
        if (name := re.fullmatch(r"`([\w.]+)(?:\(\))?`", text)) and path.suffix == ".ipynb":
            assert name[1].rpartition(".")[2] in defined_in(path), f"{text} is not defined in {target}"


@pytest.mark.parametrize("notebook", [*CHAPTERS, ROOT / "nbs/index.ipynb"], ids=lambda path: path.stem)
def test_names_in_the_text_exist(notebook: Path) -> None:
    named = re.findall(r"`([A-Za-z_][\w.]*)(?:\(\))?`", "\n".join(cells_of(notebook, "markdown")))
    unknown = [name for name in named if not set(name.split(".")) <= words_of_code() | OF_OTHERS]
    assert not unknown


# Quotations. The paper's words stand in quotation marks and italics, "*so*"; a cut is marked by an ellipsis. Whoever
# else is quoted is quoted without italics, and named. Quotation marks alone are for words and values.
QUOTATION = re.compile(r'"\*(.+?)\*"', re.DOTALL)
CODE = re.compile(r"```.*?```|`[^`]*`|^ {4}.*?$", re.DOTALL | re.MULTILINE)
TYPOGRAPHY = str.maketrans("“”‘’″′", "\"\"''\"'", "*$\\\u00ad¹²³")  # straight marks; no emphasis, TeX, notes


def plain(text: str) -> str:
    """Words and punctuation without typography: quotation marks, emphasis, ligatures, hyphens, ends of lines."""
    text = re.sub(r"\^?\{?\^?[¹²]\}?", "", text).replace("\\times", "×").replace("\\sim", "~")
    text = unicodedata.normalize("NFKC", text.translate(TYPOGRAPHY))
    text = re.sub(r"(?<=\w)-\s*(?=\w)", "", text)  # pre-training is pretraining where the paper's lines end
    return re.sub(r"\s+(?=[×.,;:)])|(?<=~)\s+", "", re.sub(r"\s+", " ", text)).strip()


def paper() -> str:
    """The paper as one line of plain text: captions and notes after the text that they interrupt."""
    if not PAPER.is_file():
        pytest.skip(f"the text of the paper, {PAPER}, is not there")
    paragraphs = [part.strip() for part in PAPER.read_text(encoding="utf-8").split("\n\n")]
    aside = [bool(re.match(r"(Figure|Table) \d+\.|²|\$ \^", part)) for part in paragraphs]
    text = [part for part, is_aside in zip(paragraphs, aside, strict=True) if not is_aside and "\t" not in part]
    notes = [part for part, is_aside in zip(paragraphs, aside, strict=True) if is_aside]
    return plain("\n".join([*text, *notes]))


def is_quoted_from(text: str, quotation: str) -> bool:
    """Whether each part of a quotation, cut at its ellipses, is in the text word for word, one after the other."""
    start = 0
    for part in map(plain, re.split(r"\[?(?:…|\.\.\.)\]?", quotation)):
        found = re.compile(rf"(?<!\w){re.escape(part)}(?!\w)").search(text, start)
        if part and not found:
            return False
        start = found.end() if found else start
    return True


def documentation_of(source: str) -> list[str]:
    """The docstrings and comments of a code cell."""
    tree = ast.parse(re.sub(r"(?m)^[%!].*$", "", source))
    places = ast.Module | ast.FunctionDef | ast.ClassDef
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, places)]
    return docstrings + re.findall(r"(?m)(?:^|\s)#\s(.*)$", source)


def prose_of(path: Path) -> list[str]:
    """All that a reader is told in a notebook or a page, without its code."""
    if path.suffix == ".md":
        return [CODE.sub("", path.read_text(encoding="utf-8"))]
    texts = [CODE.sub("", text) for text in cells_of(path, "markdown")]
    return texts + [text for source in cells_of(path, "code") for text in documentation_of(source)]


PAGES = [*CHAPTERS, ROOT / "nbs/index.ipynb", ROOT / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_quotations_of_the_paper_are_exact(page: Path) -> None:
    text = paper()
    quotations = [quotation for prose in prose_of(page) for quotation in QUOTATION.findall(prose)]
    assert not [quotation for quotation in quotations if not is_quoted_from(text, quotation)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_quotations_are_marked(page: Path) -> None:
    for prose in prose_of(page):
        assert prose.count('"*') == prose.count('*"') == len(QUOTATION.findall(prose)), prose
        others = re.findall(r'"[^"]*"|“[^”]*”', QUOTATION.sub("", prose))
        assert not [words for words in others if len(words.split()) > 5], "a long quotation has no italics or no source"


def test_a_wrong_quotation_is_found() -> None:
    text = paper()
    assert "synchronized SGD, with a minibatch size of 2 images per GPU" in text
    right = [
        "All models are trained in 8 GPUs using synchronized SGD, with a mini-batch size of 2 images per GPU.",
        "All models are trained in 8 GPUs … with a mini-batch size of 2 images per GPU",
        "we always reduce the learning rate by 10× in the last 60k and last 20k iterations",
        "Here we note that even with pre-training, full convergence for VGG-16 is slow.",
        "from-scratch case still sees considerably* fewer *samples than its fine-tuning counterpart",
    ]
    wrong = [
        "We use 8 GPUs ... with a mini-batch size of 16",  # words that the paper does not have
        "All models are trained in 8 GPUs, with a mini-batch size of 2 images per GPU",  # a cut without a mark
        "with a mini-batch size of 2 images per GPU … All models are trained in 8 GPUs",  # the wrong order
        "no damental obstacle",  # half a word
        "It is unrealistic and unfair to expect models to converge similarly fast",
    ]
    assert [quotation for quotation in right if not is_quoted_from(text, quotation)] == []
    assert [quotation for quotation in wrong if is_quoted_from(text, quotation)] == []
    page = 'The paper says "*no worse*", and "*no better*" nowhere.'
    assert [quotation for quotation in QUOTATION.findall(page) if not is_quoted_from(text, quotation)] == ["no better"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/*/experiment.toml")), ids=lambda path: path.parent.name)
def test_the_claim_of_an_experiment_is_in_the_paper(path: Path) -> None:
    claim = tomllib.loads(path.read_text(encoding="utf-8"))["claim"]
    assert is_quoted_from(paper(), claim), claim
