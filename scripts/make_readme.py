"""Write README.md from nbs/index.ipynb: its prose, its code, and what the code prints and draws."""

import base64
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def drawn(cell: dict[str, Any], png: str) -> str:
    """A picture that a code cell has put out: a file in images/ with the cell's label as its name."""
    told = dict(re.findall(r"(?m)^#\| (label|fig-alt): (.+)$", "".join(cell["source"])))
    path = ROOT / "images" / f"{told['label']}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(base64.b64decode(png))
    return f"![{told['fig-alt']}](images/{path.name})"


def printed(cell: dict[str, Any]) -> str:
    """What a code cell has put out: Markdown as it is, a picture as a file, other text as an indented block."""
    parts = []
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            return "\n\n" + drawn(cell, "".join(data["image/png"]))
        if "text/markdown" in data:
            return "\n\n" + "".join(data["text/markdown"]).strip()
        text = output.get("text") or data.get("text/plain", [])
        parts.append("".join(text))
    text = "".join(parts).rstrip()
    return "\n\n" + "\n".join(f"    {line}" for line in text.splitlines()) if text else ""


def as_markdown(notebook: dict[str, Any]) -> str:
    """The cells of a notebook, one after the other, without those that are only directives."""
    blocks = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            blocks.append(source)
        elif "#| echo: false" in source:
            blocks.append(printed(cell).strip())
        elif any(line and not line.startswith("#|") for line in source.splitlines()):
            blocks.append(f"```python\n{source}\n```{printed(cell)}")
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    notebook = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    (ROOT / "README.md").write_text(as_markdown(notebook), encoding="utf-8")
