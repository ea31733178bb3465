"""The book holds together: chapters in order, links that lead somewhere, names that exist."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
LINK = re.compile(r"\[([^]]+)\]\(([^)\s#]+)(?:#[^)]*)?\)")
# Names of other systems; everything else in backticks is ours or in our code.
OF_OTHERS = {"NORMALIZE_BY_VISIBLE_KEYPOINTS", "INFERENCE_MIN_SIZE", "stages", "stages_0", "0"}


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
    opening = cells_of(CHAPTERS[number], "markdown")[:2]
    earlier = {chapter.name for chapter in CHAPTERS[:number]}
    assert {target for _, target in links_of(*opening)} & earlier


@pytest.mark.parametrize("number", range(len(CHAPTERS) - 1), ids=lambda i: CHAPTERS[i].stem)
def test_a_chapter_closes_with_a_link_to_the_next(number: int) -> None:
    last = json.loads(CHAPTERS[number].read_text(encoding="utf-8"))["cells"][-1]
    assert last["cell_type"] == "markdown"
    assert CHAPTERS[number + 1].name in {target for _, target in links_of("".join(last["source"]))}


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
