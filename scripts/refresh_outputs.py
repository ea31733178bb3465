"""Run notebooks by nbdev's own rules and store what their cells show: refresh_outputs.py NOTEBOOK..."""

import base64
import io
import os
import sys
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.process import NBProcessor
from PIL import Image

LARGE = 20_000  # bytes of a stored picture; a larger one is stored with 128 colours


def smaller(png: str) -> str:
    """A picture in base64, with 128 colours if it is large: a third of the bytes, and the same to the eye."""
    content = base64.b64decode(png)
    if len(content) < LARGE:
        return png
    stored = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").quantize(128).save(stored, "PNG", optimize=True)
    return base64.b64encode(min(content, stored.getvalue(), key=len)).decode()


def refresh(path: Path) -> None:
    """Execute one notebook and save its outputs. Cells with a flag of `tst_flags` or with `eval: false` stay."""
    flags = set(get_config().tst_flags.split())
    directives = [getattr(cell, "directives_", {}) for cell in NBProcessor(path, process=True).nb.cells]
    notebook = read_nb(path)
    skip = {
        cell.idx_
        for cell, found in zip(notebook.cells, directives, strict=True)
        if flags & found.keys() or found.get("eval:") == ["false"]
    }
    shell = CaptureShell(path, mpl_format="png")
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        shell.run_all(notebook, exc_stop=True, preproc=lambda cell: cell.cell_type != "code" or cell.idx_ in skip)
    except Exception:
        sys.exit(shell.prettytb(fname=path))
    finally:
        os.chdir(before)
    for cell in notebook.cells:
        if cell.cell_type == "code":  # progress goes to stderr and would change from run to run
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for data in (output["data"] for output in cell.outputs if "image/png" in output.get("data", {})):
                data["image/png"] = smaller("".join(data["image/png"]))
    write_nb(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        refresh(Path(name).resolve())
