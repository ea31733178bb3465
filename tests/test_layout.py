"""Rules of the house: what a notebook may import, how long a definition may be, what the repository may hold."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rethink_imagenet.study.plans import PLANS
from rethink_imagenet.tools.options import COMMANDS, options_of

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
OVERVIEW = ROOT / "nbs" / "00_overview.ipynb"  # shows the whole library first, and exports nothing
LIBRARY = ROOT / "rethink_imagenet"
MODULES = sorted(".".join(path.relative_to(LIBRARY).with_suffix("").parts) for path in LIBRARY.rglob("[a-z]*.py"))


def code_of(notebook: Path) -> list[str]:
    """The source of each code cell, without the lines that are the notebook's own commands."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [re.sub(r"(?m)^[%!].*$", "", "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]


def number_of_module() -> dict[str, str]:
    """For each module the number of the notebook that exports it."""
    numbers = {}
    for notebook in NOTEBOOKS:
        for source in code_of(notebook):
            if found := re.search(r"#\| default_exp ([\w.]+)", source):
                numbers[found[1]] = notebook.name.split("_")[0]
    return numbers


def test_each_module_has_its_notebook() -> None:
    assert sorted(number_of_module()) == MODULES


def test_the_overview_exports_nothing() -> None:
    """So that it alone may import later chapters."""
    assert not [source for source in code_of(OVERVIEW) if re.search(r"#\| *(default_exp|export)", source)]


@pytest.mark.parametrize("notebook", [path for path in NOTEBOOKS if path != OVERVIEW], ids=lambda path: path.stem)
def test_a_notebook_imports_only_earlier_ones(notebook: Path) -> None:
    numbers = number_of_module()
    for source in code_of(notebook):
        imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.module]
        for module in (
            node.module.partition(".")[2] for node in imports if node.module.startswith("rethink_imagenet.")
        ):
            assert numbers[module] < notebook.name.split("_")[0], f"{notebook.name} imports {module}"


@pytest.mark.parametrize("module", MODULES)
def test_module_imports(module: str) -> None:
    importlib.import_module(f"rethink_imagenet.{module}")


@pytest.mark.parametrize("module", MODULES)
def test_definitions_are_short_and_told(module: str) -> None:
    """A function has at most 40 lines and 8 parameters, GPU kernels aside; what is public says what it is."""
    tree = ast.parse((LIBRARY / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            assert node.end_lineno - node.lineno < 40, f"{module}.{node.name} is too long"
            arguments = [a for a in node.args.args + node.args.kwonlyargs if a.arg not in ("self", "cls")]
            on_gpu = any(isinstance(one, ast.Name) and one.id == "kernel" for one in node.decorator_list)
            assert len(arguments) <= 8 or on_gpu, f"{module}.{node.name} has too many parameters"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name} has no docstring"


@pytest.mark.parametrize("module", MODULES)
def test_no_private_name_crosses_modules(module: str) -> None:
    """What another module may use has a public name."""
    tree = ast.parse((LIBRARY / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("rethink_imagenet")):
            assert not [name.name for name in node.names if name.name.startswith("_")], f"{module}: {node.module}"


def public_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """Functions, methods and initializers that are not private."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    bodies = [tree.body, *(node.body for node in classes)]
    functions = [node for body in bodies for node in body if isinstance(node, ast.FunctionDef)]
    return [node for node in functions if node.name == "__init__" or not node.name.startswith("_")]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_argument_is_told(module: str) -> None:
    """Each argument has a line of its own with a comment (docments), each function but __init__ a docstring."""
    source = (LIBRARY / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in public_functions(ast.parse(source)):
        for argument in node.args.args + node.args.kwonlyargs:
            told = argument.arg in ("self", "cls") or "  # " in lines[(argument.end_lineno or 0) - 1]
            assert told, f"{module}.{node.name}: {argument.arg} is not told"
        assert node.name == "__init__" or ast.get_docstring(node), f"{module}.{node.name} has no docstring"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_told(name: str) -> None:
    """Each option has a help text: the comment of its field, which has to stand on the line of the name."""
    assert not [option.name for option in options_of(COMMANDS[name]) if not option.told]


def test_the_readme_has_the_models_as_they_are() -> None:
    """Their rows: iterations of 1x, schedules, images an iteration."""
    rows = re.findall(r"^\| `(demo|small|paper)`[^|]*\| ([\d,]+) \| ([\dx, to]+) \| [^|]* \| (\d+) \|$",
                      (ROOT / "README.md").read_text(encoding="utf-8"), re.M)  # fmt: skip
    assert [name for name, *_ in rows] == list(PLANS)
    for name, unit, schedules, batch in rows:
        plan, numbers = PLANS[name], [float(n) for n in re.findall(r"\d+", schedules)]
        assert (f"{plan.unit:,}", str(plan.batch)) == (unit, batch)
        assert numbers in (list(plan.schedules), [min(plan.schedules), max(plan.schedules)])


def test_import_is_quiet() -> None:
    code = "import rethink_imagenet.tools.cli"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_package_offers_names_and_loads_nothing_before_they_are_used() -> None:
    code = (
        "import sys, rethink_imagenet as ri; assert 'torch' not in sys.modules, 'torch'; "
        "print(*(name for name in dir(ri) if getattr(ri, name) is None)); ri.Schedule(9, ()).iterations"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_repository_holds_no_large_files() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.fail("not a git checkout")
    for name in listed.stdout.split("\0"):
        if name:
            content = (ROOT / name).read_bytes()
            if name.endswith("_modidx.py"):  # nbdev aligns its index, which makes more than half of the file
                content = b"\n".join(line.strip() for line in content.splitlines())
            assert len(content) < (200_000 if name.endswith("_modidx.py") else 400_000), f"{name} is large"
