"""Build the site from the notebooks: make_site.py [NN ...] writes _docs/html, of all chapters or of those named.

Sphinx is given the pages in _docs/source: copies of the chapters as a reader wants them, a page for each part,
pages of the API made from the docments, and a front page with the evidence. Nothing is executed or downloaded.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parent))

import api_pages
import contents

ROOT = contents.ROOT
LINK = re.compile(r"(?<!!)\[((?:[^][]|\[[^]]*\])+)\]\(([^)\s]+)\)")
CODE = re.compile(r"(```.*?```|~~~.*?~~~|`[^`\n]*`(?!\]))", re.DOTALL)
FIRST_OF_LIBRARY = "## The main job\n"
Cell = dict[str, Any]


class Book:
    """The chapters that are built, and where each of their names is defined."""

    def __init__(self, numbers: list[str]):
        self.config = contents.settings()
        self.times: dict[str, float] = json.loads(contents.SECONDS.read_text(encoding="utf-8"))
        every = contents.chapters()
        self.chapters = [path for path in every if not numbers or path.stem[:2] in numbers]
        self.names = {path.stem for path in self.chapters}
        self.labels = {path.stem: labels_of(contents.read(path), path.stem) for path in every}
        self.missing: list[str] = []
        self.page = "nbs/index.ipynb"  # that is being written
        self.blob = f"{self.config['git_url']}/blob/{self.config['branch']}"

    def link(self, text: str, target: str) -> str:
        """A link of a notebook as a link of the site; what the site does not have is linked to the repository."""
        if re.match(r"\w+:|#", target):
            return f"[{text}]({target})"
        path, _, anchor = target.partition("#")
        stem = Path(path).stem
        if stem in self.names and path.endswith(".ipynb"):
            name = re.fullmatch(r"`(?:\w+\.)*(\w+)(?:\(\))?`", text)
            label = self.labels[stem].get(name[1]) if name and not anchor else None
            return f"[{text}](#{label})" if label else f"[{text}](/{stem}.ipynb{'#' + anchor if anchor else ''})"
        place = f"nbs/{path}" if (ROOT / "nbs" / path).exists() else path
        if not (ROOT / place).exists():
            self.missing.append(f"{self.page}: [{text}]({target}) leads to no file")
            return text
        return f"[{text}]({self.blob}/{place})"

    def linked(self, text: str) -> str:
        """Markdown with its links rewritten, code left as it is."""
        pieces = CODE.split(text)
        return "".join(
            piece if i % 2 else LINK.sub(lambda found: self.link(found[1], found[2]), piece)
            for i, piece in enumerate(pieces)
        )

    def title(self, path: Path) -> str:
        """The title of a chapter, beginning with a capital letter."""
        found = re.findall(r"(?m)^# (.*)", "".join(contents.read(path)["cells"][0]["source"]))[0].replace("_", " ")
        return found[0].upper() + found[1:]


def labels_of(notebook: contents.Notebook, stem: str) -> dict[str, str]:
    """The label of each function and class of a chapter, to be put before the cell that defines it."""
    labels: dict[str, str] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            for name in re.findall(r"(?m)^(?:async def|def|class) (\w+)", "".join(cell["source"])):
                label = f"def-{stem[:2]}-{name.lower().replace('_', '-').strip('-')}"
                if label not in labels.values():
                    labels.setdefault(name, label)
    return labels


def directives(source: str) -> dict[str, str]:
    """The directives of a code cell."""
    return {key: value.strip() for key, value in re.findall(r"(?m)^#\|\s*([\w-]+):?(.*)$", source)}


def alt(source: str) -> str:
    """What a picture shows: its `fig-alt`, or the titles in the code that draws it."""
    if told := directives(source).get("fig-alt"):
        return told
    titles = re.findall(r"(?:title|suptitle)\(\s*f?\"([^\"{}]+)\"", source) + re.findall(r'title=f?"([^"{}]+)"', source)
    return "Plot: " + ", ".join(titles) if titles else "Picture drawn by the code above"


def put_out(book: Book, output: dict[str, Any]) -> dict[str, Any]:
    """An output, with links of the site. A table in it may name chapters that are still to be written."""
    text, missing = output.get("data", {}).get("text/markdown"), list(book.missing)
    if not text:
        return output
    linked = book.linked("".join(text))
    book.missing = missing
    return output | {"data": {"text/markdown": linked}}


def code_cell(book: Book, cell: Cell) -> Cell | None:
    """A code cell as a reader wants it: without directives, folded if it is a solution. None if it is for nbdev."""
    source = "".join(cell["source"])
    found = directives(source)
    shown = re.sub(r"(?m)^#\|.*\n?", "", source).strip("\n")
    if "hide" in found or not shown.strip():
        return None
    metadata: dict[str, Any] = {"mystnb": {"image": {"alt": alt(source)}}}
    if found.get("code-fold") == "true":
        metadata["tags"] = ["hide-input"]
        title = re.match(r"# (.+)", shown)
        for word in ("show", "hide"):
            metadata["mystnb"][f"code_prompt_{word}"] = (
                f"{word.capitalize()} {(title[1] if title else 'the code').lower()}"
            )
    if found.get("echo") == "false":
        metadata["tags"] = ["remove-input"]
    return cell | {
        "source": shown,
        "metadata": metadata,
        "outputs": [put_out(book, found) for found in cell["outputs"]],
    }


def bar(book: Book, path: Path, module: str | None) -> str:
    """The line below a title: how long the chapter runs, where it can be run, and its page of the API."""
    links = re.findall(r"\]\((https://[^)]*nbs/[^)]*)\)", contents.badges(path.name, None, book.config))
    entries = [f"[Open in Colab]({links[0]})", f"[Open in Binder]({links[1]})"]
    if path.name in book.times:
        entries.insert(0, f"Runs in {contents.in_words(book.times[path.name])} on two cores")
    entries.append(f"[Notebook]({book.blob}/nbs/{path.name})")
    if module:
        entries.append(f"[API](/api/{api_pages.page_name(module)}.md)")
    return "{.bar}\n" + " · ".join(entries)


def chapter(book: Book, path: Path) -> contents.Notebook:
    """A chapter as a page of the site."""
    notebook = contents.read(path)
    book.page = f"nbs/{path.name}"
    first, *others = [cell for cell in notebook["cells"] if cell.get("id") not in ("badges", "install")]
    module = api_pages.module_of(notebook)
    title = re.sub(r"(?m)^# .*", f"# {book.title(path)}", "".join(first["source"]), count=1)
    cells = [first | {"source": book.linked(title)}, contents.cell("markdown", "bar", bar(book, path, module))]
    labels = dict(book.labels[path.stem])
    for cell in others:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            cells.append(cell | {"source": book.linked(source)})
        elif shown := code_cell(book, cell):
            names = re.findall(r"(?m)^(?:async def|def|class) (\w+)", source)
            found = [label for name in names if (label := labels.pop(name, None))]
            if found:
                targets = "\n".join(f"({label})=" for label in found)
                cells.append(contents.cell("markdown", f"to-{shown['id']}", targets))
            cells.append(shown)
    return notebook | {"cells": cells}


def tree(entries: list[str], *options: str) -> str:
    """A table of contents for Sphinx."""
    return "\n".join(
        ["```{toctree}", *(f":{option}:" if ":" not in option else option for option in options), "", *entries, "```"]
    )


def part_page(book: Book, number: int, paths: list[Path]) -> str:
    """The page of a part: its chapters, what each is about, and how long it runs."""
    title, sentence = contents.PARTS[number]
    rows = ["| chapter | what it is about | runs in |", "|---|---|---|"]
    for path in paths:
        time = contents.in_words(book.times[path.name]) if path.name in book.times else ""
        about = book.linked(contents.subtitle(contents.read(path)))
        rows.append(f"| [{path.stem[:2]} {book.title(path)}](/{path.name}) | {about} | {time} |")
    entries = [f"{path.stem[:2]} {book.title(path)} <{path.stem}>" for path in paths]
    return "\n\n".join([f"# {title}", sentence, "\n".join(rows), tree(entries, "hidden", ":maxdepth: 1")]) + "\n"


def split_index(book: Book) -> tuple[list[Cell], list[Cell]]:
    """The cells of the index: those of the front page, and from the first section on the library those of its page."""
    sides: tuple[list[Cell], list[Cell]] = ([], [])
    late = False
    for cell in contents.read(contents.NBS / "index.ipynb")["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            sides[late].append(cell)
            continue
        early, mark, rest = ("", "", source) if late else source.partition(FIRST_OF_LIBRARY)
        late = late or bool(mark)
        text = re.sub(r"(?ms)^## The chapters\n.*?(?=^## |\Z)", "", mark + rest)
        for side, part in zip(sides, (early, text) if late else (source, ""), strict=True):
            if part.strip():
                side.append(cell | {"source": part})
    if not late:
        sys.exit(f"nbs/index.ipynb: no section {FIRST_OF_LIBRARY!r}, with which the page of the library begins")
    return sides


def page_of(book: Book, cells: list[Cell]) -> contents.Notebook:
    """A notebook with cells of the index."""
    shown = [
        cell | {"source": book.linked(cell["source"])} if cell["cell_type"] == "markdown" else code_cell(book, cell)
        for cell in cells
    ]
    return contents.read(contents.NBS / "index.ipynb") | {"cells": [cell for cell in shown if cell]}


def front_page(book: Book, cells: list[Cell], parts: list[int]) -> contents.Notebook:
    """The head of the README with the evidence, then the parts of the book."""
    rows = ["| part | what it is about |", "|---|---|"]
    rows += [f"| [{contents.PARTS[number][0]}](/part-{number}.md) | {contents.PARTS[number][1]} |" for number in parts]
    ways = "[The library](/library.ipynb) says how it is installed and used on your own data, and "
    ways += "[the API](/api/index.md) lists every public name."
    book_tree = tree([f"part-{number}" for number in parts], "hidden", ":caption: The book", ":maxdepth: 2")
    library_tree = tree(["library", "api/index"], "hidden", ":caption: The library", ":maxdepth: 2")
    text = "\n\n".join(["## The parts of the book", "\n".join(rows), ways, book_tree, library_tree])
    notebook = page_of(book, cells)
    return notebook | {"cells": [*notebook["cells"], contents.cell("markdown", "parts", text)]}


def write_source(book: Book, folder: Path) -> None:
    """All pages that Sphinx is given."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "api").mkdir(parents=True)
    for path in book.chapters:
        (folder / path.name).write_text(json.dumps(chapter(book, path)), encoding="utf-8")
    parts = sorted({contents.part_of(path) for path in book.chapters})
    for number in parts:
        paths = [path for path in book.chapters if contents.part_of(path) == number]
        (folder / f"part-{number}.md").write_text(part_page(book, number, paths), encoding="utf-8")
    book.page = "nbs/index.ipynb"
    front, library = split_index(book)
    title = contents.cell("markdown", "title", "# The library")
    for name, page in (("index", front_page(book, front, parts)), ("library", page_of(book, library))):
        if name == "library":
            page["cells"].insert(0, title)
        (folder / f"{name}.ipynb").write_text(json.dumps(page), encoding="utf-8")
    chapters = {module: path for path in book.chapters if (module := api_pages.module_of(contents.read(path)))}
    titles = {path.stem: book.title(path) for path in book.chapters}
    for name, text in api_pages.pages(chapters, titles, book.labels).items():
        (folder / "api" / f"{name}.md").write_text(text, encoding="utf-8")


class Page(HTMLParser):
    """The anchors of a page, what it links to, and what it loads."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif "src" in found:
            self.loads.append(found["src"])
        elif tag == "link" and found.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(found.get("href", ""))


def faults(folder: Path) -> list[str]:
    """Links of a built site that lead nowhere, and whatever its pages would load from elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        place = path.relative_to(folder)
        found += [f"{place} loads {load}" for load in page.loads if re.match(r"(\w+:)?//", load)]
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{place}: {link} does not exist")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{place}: {link} has no such place")
    return sorted(set(found))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapters", nargs="*", metavar="NN", help="numbers of chapters; all if there are none")
    parser.add_argument("--out", type=Path, default=ROOT / "_docs", help="folder for the pages; _docs by default")
    arguments = parser.parse_args()
    unknown = set(arguments.chapters) - {path.stem[:2] for path in contents.chapters()}
    if unknown:
        parser.error(f"no chapter {', '.join(sorted(unknown))} in nbs/; give numbers such as 30")
    book, source, html = Book(arguments.chapters), arguments.out / "source", arguments.out / "html"
    write_source(book, source)
    shutil.rmtree(html, ignore_errors=True)
    print(f"{len(book.chapters)} chapters, {len(list((source / 'api').iterdir()))} pages of the API", flush=True)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-b", "html", "-c", "docs"]
    command += ["-d", str(arguments.out / "doctrees"), str(source), str(html)]
    if subprocess.run(command, cwd=ROOT).returncode:
        sys.exit("the site has faults, see above")
    if broken := book.missing + faults(html):
        sys.exit("\n".join([*broken, f"{len(broken)} faults in the links of the site"]))
    print(f"the site is {html / 'index.html'}")


if __name__ == "__main__":
    main()
