"""The page of a large study: its size, the time it takes, and how it looks in a browser, on a desk and on a phone."""

import html
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rethink_imagenet.study.report import SIDE_BY_SIDE, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium or Chrome on this machine")
ARMS = {"scratch": 1.0, "pretrained": 0.7}  # how slowly an arm learns
SCHEDULES, SEEDS, AMOUNTS = (2, 4, 6, 12), 5, (1000, 4000)


def run(arm: str, schedule: int, seed: int) -> dict[str, Any]:
    """A run of 20 evaluations and 2,000 losses."""
    chance, end = np.random.default_rng(seed), 15_000 * schedule
    points = np.linspace(0, 1, 21)[1:]
    ap = 40 * (1 - np.exp(-3 * schedule * points / ARMS[arm] / 6)) + 3 * (points > 0.75) + chance.normal(0, 0.3, 20)
    losses = 0.5 + 2 * np.exp(-np.linspace(0, schedule, 2000) / ARMS[arm]) + chance.normal(0, 0.05, 2000)
    figures = {"ap": ap[-1], "ap50": ap[-1] + 20, "ap75": ap[-1] + 2}
    return {
        "arm": arm, "schedule": schedule, "seed": seed, "images_of": AMOUNTS[-1], "iterations": end,
        "folder": f"{arm}-seed{seed}-{schedule}x", "images": 16 * end, "instances": 100 * end, "pixels": 10**7 * end,
        "seconds": 0.4 * end, "skipped": 3, "box": figures, "mask": figures,
        "curve": [{"iteration": round(end * p), "box": {"ap": a}, "mask": {"ap": a - 3}}
                  for p, a in zip(points, ap, strict=True)],
        "losses": [[round(end * k / 2000) + 1, loss] for k, loss in enumerate(losses)],
    }  # fmt: skip


def judged(schedule: int, gap: float, kind: str = "box", images_of: int = AMOUNTS[-1]) -> dict[str, Any]:
    """A verdict, made up."""
    return {
        "system": "", "schedules": {"scratch": schedule, "pretrained": schedule}, "images_of": images_of,
        "seeds": [SEEDS, SEEDS], "kind": kind, "difference": gap, "interval": [gap - 0.6, gap + 0.6], "level": 0.95,
        "word": "worse", "sentence": f"After the {schedule:g}x schedule, five detectors from scratch against five from "
        "pre-training (resnet50_gn.a1h_in1k): worse (-2.10 box AP, 95 % interval -2.70 to -1.50).",
        "statement": "From scratch 40.1 box AP, with pre-training 42.2. " * 3,
    }  # fmt: skip


def large_study() -> dict[str, Any]:
    """What results.json of 40 runs holds: both arms, four schedules, five seeds, many classes, a long command."""
    gaps = [-6.0, -4.1, -3.0, -2.1]
    ladder = [judged(n, gap) for n, gap in zip(SCHEDULES, gaps, strict=True)]
    ahead = {"forecasts": [{"schedule": 24, "gap": -1.5, "interval": [-2.4, -0.6]}], "meeting": {"chance": 0.2}}
    amounts = {
        "gaps": [{"images": n, "difference": -4 + n / 2000, "interval": [-5 + n / 2000, -3.0]} for n in AMOUNTS],
        "opening": {"interval": [1200, 3000]},
        "more": [{"schedule": 8000, "gap": -0.5, "interval": [-2, 1]}],
    }
    classes = [f"a class with a very long name that no column was made for, number {k}" for k in range(60)]
    spread = np.random.default_rng(0).normal(40, 10, (2, SEEDS, 60)).round(2).tolist()
    cost = {"pretraining": "by the paper's count", "images": 10**8, "pixels": 10**14, "seconds": None}
    return {
        "figure": "", "scale": 1, "runs": [run(a, n, s) for a in ARMS for n in SCHEDULES for s in range(SEEDS)],
        "verdict": ladder[-1], "differences": [ladder[-1], judged(12, -1.9, "mask"), judged(12, -3, "box", 1000)],
        "verdicts": ladder, "margin": 0.5, "looks": [5],
        "courses": [{"system": "", "images_of": AMOUNTS[-1], "kind": "box", "course": ahead, "statement": "Caught up "
                     "at no schedule. With 24x (forecast): gap -1.5, 80 % interval -2.4 to -0.6."}],
        "amounts": [{"system": "", "kind": "box", "amounts": amounts, "statement": "The gap opens at 1,800 images."}],
        "details": [{"system": "", "images_of": AMOUNTS[-1], "kind": "box", "classes": classes,
                     "by_overlap": dict(zip(ARMS, [[row[:10] for row in arm] for arm in spread], strict=True)),
                     "by_class": dict(zip(ARMS, spread, strict=True))}],
        "costs": {"": {"scratch": cost, "pretrained": cost}}, "tuning": None,
        "pretraining": {"resnet50_gn": {"weights": "resnet50_gn.a1h_in1k", "counted": "not recorded"}},
        "versions": {f"package{k}": "2.12.0+cu130" for k in range(12)},
        "data": [f"Trained on /data/{'a_folder_with_a_long_name/' * 9}train.json (4,000 images)."],
        "command": f"rethink_compare --data /data/{'a_folder_with_a_long_name/' * 9} --seeds 5 --schedules 2,4,6,12",
    }  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The page of the study with six large pictures, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "results.json").write_text(json.dumps(large_study()))
    (folder / SIDE_BY_SIDE).mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (316, 928, 3), np.uint8)
    for k in range(1, 7):
        counts = "from scratch 12 right 3 wrong, pre-trained 9 right 5 wrong, of 14 objects"
        path = folder / SIDE_BY_SIDE / f"{k} - {'a_long_name_' * 3} - {counts}.jpg"
        Image.fromarray(noise).save(path, quality=50)
        assert path.stat().st_size > 100_000
    start = time.monotonic()
    return write_report(folder), time.monotonic() - start


def test_the_report_of_forty_runs_is_small_and_fast(report: tuple[Path, float]) -> None:
    page, seconds = report
    assert seconds < 20
    assert page.stat().st_size < 5_000_000
    assert len(re.findall("<tr><td>", page.read_text())) > 40
    assert "By class, box AP, means over seeds" in page.read_text()


# In each frame: its width, what it scrolls to, the scheme, and the texts with too little contrast.
MEASURE = """
<script>
const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
const numbers = colour => colour.match(/[\\d.]+/g).map(Number)
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b)
function behind(view, element) {
  for (; element; element = element.parentElement) {
    const colour = numbers(view.getComputedStyle(element).backgroundColor)
    if (colour.length < 4 || colour[3] > 0) return colour
  }
  throw Error("nothing is painted behind a text")
}
function contrast(view, element) {
  const both = [numbers(view.getComputedStyle(element).color), behind(view, element)].map(light)
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05)
}
onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const view = frame.contentWindow, page = view.document, texts = [...page.body.querySelectorAll("*")].filter(
      e => !/^(STYLE|SCRIPT)$/.test(e.tagName) && [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
    return {width: view.innerWidth, scrolls: page.documentElement.scrollWidth, texts: texts.length,
            dark: view.matchMedia("(prefers-color-scheme:dark)").matches,
            images: page.images.length,
            empty: [...page.images].filter(image => image.naturalWidth == 0).map(image => image.alt),
            small: Math.min(...texts.map(e => parseFloat(view.getComputedStyle(e).fontSize))),
            pale: texts.map(e => [contrast(view, e), e.textContent.slice(0, 40)]).filter(([c]) => c < 4.5)}
  })
  document.body.innerHTML = "<pre></pre>"
  document.body.firstChild.textContent = JSON.stringify(found)
}
</script>"""


def opened(page: str, dark: bool, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What a browser finds in frames of 390 and 1200 pixels, and what it writes to its console."""
    frames = [f'<iframe width={width} height=844 srcdoc="{html.escape(page)}"></iframe>' for width in (390, 1200)]
    (folder / "frames.html").write_text(
        f"<!doctype html><meta charset=utf-8><style>:root{{color-scheme:light dark}}iframe{{border:0}}</style>"
        f"<body>{''.join(frames)}{MEASURE}"
    )
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0", "--dump-dom",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", (folder / "frames.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    written = re.search("<pre>(.*)</pre>", done.stdout, re.DOTALL)
    assert written, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(html.unescape(written[1])), said


@pytest.mark.browser
@in_a_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_in_a_browser(report: tuple[Path, float], tmp_path: Path, dark: bool) -> None:
    found, said = opened(report[0].read_text(), dark, tmp_path)
    assert said == []
    assert [frame["width"] for frame in found] == [390, 1200]
    for frame in found:
        assert frame["dark"] == dark and frame["texts"] > 500 and frame["images"] > 10
        assert frame["empty"] == []
        assert frame["scrolls"] <= frame["width"]
        assert frame["pale"] == []
        assert frame["small"] >= 12


@pytest.mark.browser
@in_a_browser
def test_the_browser_finds_faults(tmp_path: Path) -> None:
    page = (
        "<!doctype html><body style='background:#fff'><p style='width:600px;color:#888'>pale</p>"
        "<img src='nowhere.png' alt=nothing><script>console.error('broken')</script>"
    )
    (narrow, _), said = opened(page, False, tmp_path)
    assert narrow["scrolls"] > 600 and narrow["empty"] == ["nothing"]
    assert [round(pale[0], 2) for pale in narrow["pale"]] == [3.54]
    assert any("broken" in line for line in said)
