"""Pages of the API, made from the source of the library: every public name with its docments."""

import ast
import copy
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "rethink_imagenet"
Function = ast.FunctionDef | ast.AsyncFunctionDef
Row = tuple[str, str, str, str]  # name, type, default, what it is


def module_of(notebook: dict) -> str | None:
    """The module that a notebook exports, without the name of the library."""
    for cell in notebook["cells"]:
        if found := re.search(r"(?m)^#\|\s*default_exp (\S+)", "".join(cell["source"])):
            return found[1]
    return None


def page_name(module: str) -> str:
    """The name of the page of a module."""
    return module.replace(".", "-")


def escaped(text: str) -> str:
    """Text of a docstring or a comment as Markdown; what stands in backticks stays code."""
    pieces = re.split(r"(`[^`]+`)", " ".join(text.split()))
    plain = [piece if i % 2 else re.sub(r"([\\*_$<\[\]~{}])", r"\\\1", piece) for i, piece in enumerate(pieces)]
    return "".join(plain)


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: its paragraphs, and what is indented in it as code."""
    blocks = re.split(r"\n\s*\n", docstring or "")
    return "\n\n".join(
        f"```text\n{textwrap.dedent(block).rstrip()}\n```" if block.startswith("    ") else escaped(block)
        for block in blocks
    )


class Source:
    """A module: its tree, its comments by line, and its public names."""

    def __init__(self, module: str):
        self.module = f"rethink_imagenet.{module}"
        text = (LIBRARY / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        self.comments = {
            token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT
        }
        self.tree = ast.parse(text)
        self.doc = ast.get_docstring(self.tree) or ""
        self.public: list[str] = []
        self.patches: dict[str, list[Function]] = {}
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                self.public = ast.literal_eval(node.value)
            elif isinstance(node, Function) and any("patch" in ast.unparse(found) for found in node.decorator_list):
                owner = node.args.args[0].annotation
                self.patches.setdefault(ast.unparse(owner).strip("'\"") if owner else "", []).append(node)

    def definitions(self) -> Iterator[tuple[str, ast.stmt]]:
        """Each public name with the statement that defines it."""
        patched = {id(node) for nodes in self.patches.values() for node in nodes}
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef | Function) and id(node) not in patched:
                names = [node.name]
            elif isinstance(node, ast.Assign):
                found = [name for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
                names = [name.id for name in found if isinstance(name.ctx, ast.Store)]
            elif isinstance(node, ast.AnnAssign):
                names = [ast.unparse(node.target)]
            else:
                continue
            for name in names:
                if name in self.public:
                    yield name, node

    def said(self, *nodes: ast.AST | None) -> str:
        """The comment behind the last of several pieces of code."""
        ends = [end for node in nodes if node is not None and (end := getattr(node, "end_lineno", None))]
        return self.comments.get(max(ends), "") if ends else ""

    def parameters(self, node: Function, method: bool) -> list[Row]:
        """The parameters of a function, and what it returns."""
        found = node.args
        plain = [*found.posonlyargs, *found.args]
        defaults: list[ast.expr | None] = [None] * (len(plain) - len(found.defaults)) + [*found.defaults]
        pairs = list(zip(plain, defaults, strict=True))[1 if method else 0 :]
        pairs += [(found.vararg, None)] if found.vararg else []
        pairs += list(zip(found.kwonlyargs, found.kw_defaults, strict=True))
        pairs += [(found.kwarg, None)] if found.kwarg else []
        rows = [(arg.arg, unparsed(arg.annotation), unparsed(value), self.said(arg, value)) for arg, value in pairs]
        if node.returns is not None and unparsed(node.returns) != "None":
            rows.append(("*returns*", unparsed(node.returns), "", self.said(node.returns)))
        return rows

    def fields(self, node: ast.ClassDef) -> list[Row]:
        """The public fields of a class."""
        return [
            (ast.unparse(field.target), unparsed(field.annotation), unparsed(field.value), self.said(field))
            for field in node.body
            if isinstance(field, ast.AnnAssign) and not ast.unparse(field.target).startswith("_")
        ]


def unparsed(node: ast.AST | None) -> str:
    """Code as text, strings that are types without their quotation marks."""
    text = ast.unparse(node) if node is not None else ""
    return text if len(text) <= 120 else text[:117] + "..."


def table(rows: list[Row]) -> str:
    """Parameters or fields as a table, with the columns that hold anything."""
    if not any(kind or said for _, kind, _, said in rows):
        return ""
    heads = ["name", "type", "default", "what it is"]
    kept = [i for i in range(4) if i in (0, 3) or any(row[i] for row in rows)]
    lines = ["| " + " | ".join(heads[i] for i in kept) + " |", "|" + "---|" * len(kept)]
    for name, kind, default, said in rows:
        cells = [name if name.startswith("*") else f"`{name}`", code(kind), code(default), escaped(said)]
        lines.append("| " + " | ".join(cells[i].replace("|", "\\|") for i in kept) + " |")
    return "{.api}\n" + "\n".join(lines)


def code(text: str) -> str:
    """Text as code, or nothing."""
    return f"`` {text} ``" if "`" in text else f"`{text}`" if text else ""


def call(node: Function, method: bool) -> str:
    """The parameters of a function on a line, without their types."""
    arguments = copy.deepcopy(node.args)
    if method:
        del (arguments.posonlyargs or arguments.args)[0]
    for found in ast.walk(arguments):
        if isinstance(found, ast.arg):
            found.annotation = None
    return f"{node.name}({ast.unparse(arguments)})"


def directive(kind: str, signature: str, body: list[str], fence: str, *options: str) -> str:
    """A directive of Sphinx's Python domain."""
    head = f"{fence}{{py:{kind}}} {signature}\n" + "".join(f":{option}:\n" for option in options)
    return head + "\n" + "\n\n".join(part for part in body if part) + f"\n{fence}"


def method(source: Source, node: Function, owner: str) -> str:
    """A method or a property of a class."""
    marks = {ast.unparse(found) for found in node.decorator_list}
    doc = prose(ast.get_docstring(node))
    if marks & {"property", "cached_property", "patch(as_prop=True)"}:
        return directive("property", f"{owner}.{node.name}", [doc], "`````")
    of_class = bool(marks & {"classmethod", "patch(cls_method=True)"})
    options = ["classmethod"] if of_class else ["staticmethod"] if "staticmethod" in marks else []
    bound = "staticmethod" not in marks
    body = [doc, table(source.parameters(node, bound))]
    return directive("method", f"{owner}.{call(node, bound)}", body, "`````", *options)


def class_entry(source: Source, node: ast.ClassDef, where: str) -> str:
    """A class: how it is made, its fields, its public methods."""
    methods = [found for found in node.body if isinstance(found, Function)] + source.patches.get(node.name, [])
    init = next((found for found in methods if found.name == "__init__"), None)
    rows = source.parameters(init, True) if init else source.fields(node)
    signature = re.sub(r"^__init__", node.name, call(init, True)) if init else node.name
    shown = [found for found in methods if not found.name.startswith("_") or found.name == "__call__"]
    body = [prose(ast.get_docstring(node)), where, table(rows)]
    return directive("class", signature, [*body, *(method(source, found, node.name) for found in shown)], "```````")


def entry(source: Source, name: str, node: ast.stmt, where: str) -> str:
    """What a page says of one public name."""
    if isinstance(node, ast.ClassDef):
        return class_entry(source, node, where)
    if isinstance(node, Function):
        body = [prose(ast.get_docstring(node)), where, table(source.parameters(node, False))]
        return directive("function", call(node, False), body, "```````")
    assert isinstance(node, ast.Assign | ast.AnnAssign)
    value = unparsed(node.value).replace("\n", " ")
    said = escaped(source.said(node))
    return directive(
        "data", name, [said, where, f"Value: {code(value)}" if value and len(value) < 117 else ""], "```````"
    )


def page(module: str, chapter: Path, title: str, labels: dict[str, str]) -> str:
    """The page of a module."""
    source = Source(module)
    head = [f"# {module}", prose(source.doc), f"Chapter: [{title}](/{chapter.name})."]
    head.append(f"```{{py:module}} {source.module}\n```")
    entries = []
    for name, node in source.definitions():
        where = f"Defined in [{title}](#{labels[name]})." if name in labels else ""
        entries.append(entry(source, name, node, where))
    return "\n\n".join([*head, *entries]) + "\n"


def pages(chapters: dict[str, Path], titles: dict[str, str], labels: dict[str, dict[str, str]]) -> dict[str, str]:
    """All pages of the API by name: one for each module, and an index with what the library itself offers."""
    made = {page_name(m): page(m, path, titles[path.stem], labels[path.stem]) for m, path in chapters.items()}
    text = (LIBRARY / "__init__.pyi").read_text(encoding="utf-8")
    offered = re.findall(r"from \.([\w.]+) import (\w+) as \w+", text)
    rows = ["| name | module | |", "|---|---|---|"]
    for module, name in sorted(offered, key=lambda pair: pair[1].lower()):
        if module in chapters:
            node = dict(Source(module).definitions()).get(name)
            doc = ast.get_docstring(node) or "" if isinstance(node, ast.ClassDef | Function) else ""
            about = escaped(doc.split("\n")[0]).replace("|", "\\|")
            link = f"{{py:obj}}`{name} <rethink_imagenet.{module}.{name}>`"
            rows.append(f"| {link} | [{module}](/api/{page_name(module)}.md) | {about} |")
    tree = ["```{toctree}", ":maxdepth: 1", "", *(page_name(module) for module in chapters), "```"]
    made["index"] = "\n\n".join(
        [
            "# API",
            "`import rethink_imagenet as ri` offers these names, and loads each when it is first used.",
            "\n".join(rows),
            "## All modules",
            "\n".join(tree),
        ]
    )
    return made
