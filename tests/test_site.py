"""The site: what becomes of a chapter, pages of the API, links that lead nowhere, and how it looks in a browser."""

import functools
import html
import http.server
import json
import re
import subprocess
import sys
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.test_report import CHROMIUM, in_a_browser

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import api_pages  # noqa: E402
import contents  # noqa: E402
import make_site  # noqa: E402

MODULES = sorted(
    module for path in contents.chapters() if (module := api_pages.module_of(contents.read(path))) is not None
)


BOOK = make_site.Book(["30", "31"])


def code(source: str, outputs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A code cell."""
    return contents.cell("code", "some", source) | {"outputs": outputs or []}


def test_running_the_command_twice_changes_nothing() -> None:
    path, config = contents.chapters()[5], contents.settings()
    once = contents.with_cells(contents.read(path), path.name, 12.0, config)
    assert contents.with_cells(once, path.name, 12.0, config) == once
    assert [cell["id"] for cell in once["cells"][1:3]] == ["badges", "install"]
    changed = contents.with_cells(once, path.name, 300.0, config)
    assert len(changed["cells"]) == len(once["cells"])
    assert "about 5 min" in "".join(changed["cells"][1]["source"])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "a few seconds"), (5.1, "about 5 s"), (33, "about 35 s"), (87, "about 85 s"), (89, "about 1 min")],
)
def test_times_are_coarse(seconds: float, words: str) -> None:
    assert contents.in_words(seconds) == words


def test_the_table_of_contents_has_every_chapter() -> None:
    index = contents.read(contents.NBS / "index.ipynb")
    made = contents.with_table(index, {"30_boxes.ipynb": 9.0})
    text = "".join(line for cell in made["cells"] for line in cell["source"])
    for path in contents.chapters():
        assert text.count(f"| [{path.stem}](nbs/{path.name}) |") == 1
    assert re.search(r"\[30_boxes\].* about 10 s \|", text)
    assert contents.with_table(made, {"30_boxes.ipynb": 9.0}) == made


def test_code_as_a_reader_sees_it() -> None:
    shown = make_site.code_cell(BOOK, code("#| exports\ndef twice(x): return 2 * x"))
    assert shown is not None and shown["source"] == "def twice(x): return 2 * x"
    assert "tags" not in shown["metadata"]
    folded = make_site.code_cell(BOOK, code("#| code-fold: true\n# Solutions\nassert 2 > 1"))
    assert folded is not None and folded["source"] == "# Solutions\nassert 2 > 1"
    assert folded["metadata"]["tags"] == ["hide-input"]
    assert folded["metadata"]["mystnb"]["code_prompt_show"] == "Show solutions"
    assert make_site.code_cell(BOOK, code("#| default_exp detection.boxes")) is None
    assert make_site.code_cell(BOOK, code("#| hide\nimport os")) is None
    picture = "#| fig-alt: three boxes\nplt.title('boxes')"
    assert make_site.alt(picture) == "three boxes"
    assert make_site.alt('axis.set_title("three anchors")') == "Plot: three anchors"


def test_links_go_to_the_site_or_to_the_repository() -> None:
    book = BOOK
    assert book.linked("[boxes](30_boxes.ipynb)") == "[boxes](/30_boxes.ipynb)"
    assert book.linked("[`encode`](30_boxes.ipynb)") == "[`encode`](#def-30-encode)"
    assert book.linked("[a](nbs/31_suppression.ipynb)") == "[a](/31_suppression.ipynb)"
    assert book.linked("[log](CHANGELOG.md)") == f"[log]({book.blob}/CHANGELOG.md)"
    assert book.linked("[loop](44_loop.ipynb)") == f"[loop]({book.blob}/nbs/44_loop.ipynb)"
    for same in ("[paper](https://arxiv.org/abs/1811.08883)", "`[a](30_boxes.ipynb)`", "[here](#deltas)"):
        assert book.linked(same) == same
    assert book.missing == []
    table = {"output_type": "execute_result", "data": {"text/markdown": "[a](nbs/30_boxes.ipynb) [b](nbs/99_b.ipynb)"}}
    assert make_site.put_out(book, table)["data"]["text/markdown"] == "[a](/30_boxes.ipynb) b"
    assert book.missing == []
    assert make_site.Book(["30"]).linked("[b](99_b.ipynb)") == "b"


def test_an_unknown_chapter_is_bad_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["make_site.py", "30", "99"])
    with pytest.raises(SystemExit) as stopped:
        make_site.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("error: no chapter 99 in nbs/; give numbers such as 30\n")


@pytest.mark.parametrize("module", MODULES)
def test_the_page_of_a_module_has_every_public_name(module: str) -> None:
    text = api_pages.page(module, Path("30_boxes.ipynb"), "Boxes", {})
    named = re.findall(r"(?m)^`+\{py:(?:function|class|data)\} (\w+)", text)
    assert sorted(named) == sorted(api_pages.Source(module).public)


def test_the_page_of_a_module_has_the_docments() -> None:
    text = api_pages.page(
        "training.schedules", Path("40_schedules.ipynb"), "Schedules", {"Schedule": "def-40-schedule"}
    )
    assert "{py:function} linear_rate(rate, batch, reference=16)" in text
    assert "| `batch` | `int` |  | images an iteration, 1 or more |" in text
    assert "| `rate` | `float` | `0.02` | full learning rate |" in text
    assert "{py:method} Schedule.times(n, unit=90000" in text and ":classmethod:" in text
    assert "{py:property} Family.trunk" in text
    assert "Defined in [Schedules](#def-40-schedule)." in text


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<p id="here"></p><a href="b.html#there">b</a><a href="#here">a</a>')
    (tmp_path / "b.html").write_text('<h2 id="there"></h2><img src="c.png"><a href="https://arxiv.org">far</a>')
    (tmp_path / "c.png").write_bytes(b"")
    assert make_site.faults(tmp_path) == []
    (tmp_path / "d.html").write_text(
        '<a href="e.html">e</a><a href="b.html#nowhere">b</a><script src="https://cdn.example/x.js"></script>'
    )
    assert make_site.faults(tmp_path) == [
        "d.html loads https://cdn.example/x.js",
        "d.html: b.html#nowhere has no such place",
        "d.html: e.html does not exist",
    ]


MEASURE = """<script>onload = async () => {
  const found = []
  for (const frame of document.querySelectorAll("iframe")) {
    const view = frame.contentWindow, page = view.document
    const script = page.createElement("script")
    await new Promise(done => { script.onload = done; script.src = "/axe.js"; page.head.append(script) })
    const {violations} = await view.axe.run(page, {resultTypes: ["violations"], iframes: false})
    found.push({page: frame.dataset.page, width: view.innerWidth, scrolls: page.documentElement.scrollWidth,
            dark: view.getComputedStyle(page.body).backgroundColor, equations: page.querySelectorAll("math").length,
            wide: Math.max(0, ...[...page.querySelectorAll("math")].map(e => e.getBoundingClientRect().width)),
            empty: [...page.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src),
            unnamed: [...page.images].filter(image => !image.alt).length,
            folded: page.querySelectorAll("details.hide").length,
            barriers: violations.map(one => `${one.id}: ${one.nodes[0].html.slice(0, 120)}`)})
  }
  document.body.innerHTML = "<pre></pre>"
  document.body.firstChild.textContent = JSON.stringify(found)
}</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, without a line for each."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def opened(site: Path, pages: list[str], dark: bool, profile: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What a browser and axe find in pages that are 390 and 1280 pixels wide, and what goes to the console."""
    frames = [
        f'<iframe loading=eager width={width} height=844 data-page="{page}" src="{page}"></iframe>'
        for width in (390, 1280)
        for page in pages
    ]
    (site / "frames.html").write_text(f"<!doctype html><meta charset=utf-8><body>{''.join(frames)}{MEASURE}")
    (site / "axe.js").write_bytes((files("axe_core_python") / "axe.min.js").read_bytes())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
        "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--enable-logging=stderr",
        "--v=0", "--dump-dom", "--virtual-time-budget=60000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"http://127.0.0.1:{server.server_address[1]}/frames.html",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    finally:
        server.shutdown()
        for name in ("frames.html", "axe.js"):
            (site / name).unlink()
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "frames.html" not in line]
    written = re.search("<pre>(.*)</pre>", done.stdout, re.DOTALL)
    assert written, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(html.unescape(written[1])), said


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site with three chapters."""
    for package in ("sphinx", "myst_nb", "furo", "latex2mathml", "ziamath", "axe_core_python"):
        pytest.importorskip(package, reason="pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / "scripts/make_site.py"), "01", "11", "30", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out / "html"


@pytest.mark.slow
@pytest.mark.browser
@in_a_browser
def test_what_shuts_readers_out_is_found(tmp_path: Path) -> None:
    pytest.importorskip("axe_core_python", reason="pip install -e '.[docs]'")
    page = "<!doctype html><title>x</title><body><img src=a.png><p style='color:#aaa;background:#fff'>grey</p>"
    (tmp_path / "x.html").write_text(page)
    found, _ = opened(tmp_path, ["x.html"], False, tmp_path / "profile")
    for frame in found:
        assert {"color-contrast", "html-has-lang", "image-alt"} <= {one.partition(":")[0] for one in frame["barriers"]}


@pytest.mark.slow
@pytest.mark.browser
@in_a_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_site_in_a_browser(site: Path, tmp_path: Path, dark: bool) -> None:
    pages = ["index.html", "11_scenes.html", "30_boxes.html", "api/detection-boxes.html"]
    found, said = opened(site, pages, dark, tmp_path / "profile")
    assert said == []
    assert [frame["page"] for frame in found] == pages * 2
    assert {frame["width"] for frame in found} == {390, 1280}
    for frame in found:
        assert frame["scrolls"] <= frame["width"], frame
        assert frame["empty"] == [] and frame["unnamed"] == 0
        assert frame["barriers"] == [], frame["page"]
        assert (sum(map(int, re.findall(r"\d+", frame["dark"])[:3])) < 150) == dark
        if frame["page"] == "30_boxes.html":
            assert frame["equations"] > 10 and frame["wide"] > 50
