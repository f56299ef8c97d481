"""What the site needs beside Sphinx: API pages, formulas without a script, docstrings as they are.

Docstrings here are prose with `code` in single backticks. reStructuredText reads more into
characters such as `*` and `_`; they are escaped, so that nobody has to write for it.
"""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
API = ROOT / "docs" / "api"
PACKAGES = {
    "pp_jax": "Shared: types, prompts, checkpoints, settings",
    "pp_jax.preprocess": "What happens to an image before SAM",
    "pp_jax.sam": "The model",
    "pp_jax.predict": "Masks of a trained model",
    "pp_jax.baselines": "Classical methods and networks",
    "pp_jax.finetune": "Training",
    "pp_jax.evaluate": "Metrics, protocols, reports",
    "pp_jax.study": "The study",
    "data": "Data sets and pipelines",
    "convert": "Weights, both ways",
}
NAVIGATION = {
    "Use": (
        "data",
        "preprocessing",
        "training",
        "evaluation",
        "segmentation",
        "multi_gpu",
        "tpu",
        "troubleshooting",
    ),
    "Know": ("study", "../benchmarks/RESULTS", "ethics"),
    "Develop": ("contributing", "changelog", "api/index"),
}


def modules(package: str) -> Iterator[tuple[str, str]]:
    """Public modules directly in a package, and the first sentence of each."""
    for path in sorted((ROOT / package.replace(".", "/")).glob("*.py")):
        if not path.stem.startswith("_"):
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            yield f"{package}.{path.stem}", " ".join(text.split("\n\n")[0].split())


def write_api(_: Sphinx) -> None:
    """A page for each public module, and one that lists them; pages of modules that went, go."""
    API.mkdir(exist_ok=True)
    pages = {}
    lines = ["API", "===", ""]
    for package, title in PACKAGES.items():
        heading = f"{title} (``{package}``)"
        lines += [heading, "-" * len(heading), "", ".. toctree::", "   :hidden:", ""]
        rows = list(modules(package))
        lines += [f"   {name}" for name, _ in rows] + [""]
        for name, summary in rows:
            lines += [f":doc:`{name} <{name}>`", f"   {escaped(summary)}", ""]
            pages[name] = f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n   :members:\n"
    pages["index"] = "\n".join(lines)
    for path in API.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = API / f"{name}.rst"
        if not path.is_file() or path.read_text() != text:  # Unchanged pages are not built again.
            path.write_text(text)


def adapt_page(app: Sphinx, page: str, source: list[str]) -> None:
    """What a Markdown page needs that GitHub would show as it stands, or does not need."""
    if page.startswith("docs/api/"):
        return
    # A block that names no language is a command, not Python.
    app.env.current_document.highlight_language = "text"
    source[0] = _under_one_title(source[0])
    if page == "README":
        for caption, names in NAVIGATION.items():
            entries = "\n".join(f"docs/{name}".replace("docs/../", "") for name in names)
            options = f":hidden:\n:titlesonly:\n:caption: {caption}"
            source[0] += f"\n\n```{{toctree}}\n{options}\n\n{entries}\n```\n"


def _under_one_title(text: str) -> str:
    """The page with one title, which alone stands in the navigation; others are sections of it."""
    code, titles, deeper = False, 0, []
    for line in text.split("\n"):
        code ^= line.lstrip().startswith("```")
        titles += not code and line.startswith("# ")
        deeper.append("#" * (titles > 1 and not code and line.startswith("#")) + line)
    return "\n".join(deeper)


CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
EXAMPLE = re.compile(r"^ *>>> .*?(?=^ *$|\Z)", re.DOTALL | re.MULTILINE)
COLUMNS = re.compile(r"^.*\S {2,}\S", re.MULTILINE)


def escaped(text: str) -> str:
    """A docstring's prose as reStructuredText that shows the same."""
    parts, end = [], 0
    for example in EXAMPLE.finditer(text):
        parts += [_escaped_prose(text[end : example.start()]), example.group()]
        end = example.end()
    return "".join([*parts, _escaped_prose(text[end:])])


def escaped_module(text: str) -> str:
    """The same of a module's docstring, in which a block in columns stays as it is."""
    blocks = text.split("\n\n")
    return "\n\n".join(
        "::\n\n" + re.sub("^", "    ", block, flags=re.MULTILINE)
        if COLUMNS.search(block)
        else escaped(block)
        for block in blocks
    )


def _escaped_prose(text: str) -> str:
    parts, end = [], 0
    for code in CODE.finditer(text):
        words = " ".join(code.group(2).split("\n")) if "\n" in code.group(2) else code.group(2)
        words = re.sub(r" {2,}", " ", words)
        parts += [_escaped_words(text[end : code.start()])]
        # Markup must not touch a letter: an escaped space, which is not shown, stands between.
        touches = text[code.end() : code.end() + 1].isalnum()
        parts += ["\\ " * text[: code.start()][-1:].isalnum(), f"``{words}``", "\\ " * touches]
        end = code.end()
    return "".join([*parts, _escaped_words(text[end:])])


def _escaped_words(text: str) -> str:
    return re.sub(r"([\\*|]|_\b|(?<=\w)_(?!\w))", r"\\\1", text)


def escape_docstring(
    _: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Before napoleon reads the sections."""
    del name, thing, options
    text = "\n".join(lines)
    lines[:] = (escaped_module(text) if what == "module" else escaped(text)).split("\n")


def skip_field(
    _: Sphinx, what: str, name: str, thing: object, skip: bool, options: object
) -> bool | None:
    """A NamedTuple's fields stand in its signature, and have no docstrings of their own."""
    del what, name, options
    return True if (getattr(thing, "__doc__", "") or "").startswith("Alias for field") else None


def shorten_signature(
    _: Sphinx, what: str, name: str, thing: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """A layer's signature without the two parameters that flax adds to each."""
    del what, name, thing, options
    if signature and ", parent:" in signature:
        return re.sub(r", parent:.*$", ")", signature), returns
    return None


def mathml(writer: Any, node: nodes.math | nodes.math_block, *, block: bool) -> None:
    """The formula in the page itself: browsers draw MathML, and no script is loaded.

    Raises:
      nodes.SkipNode: Always; the formula is written.
    """
    tree = latex2mathml.tex2mathml(node.astext(), as_block=block)
    writer.body.append(tree)
    raise nodes.SkipNode


class _Torch(ModuleType):
    """torch as far as annotations go, which need classes; the site is built without it."""

    Tensor = type("Tensor", (), {"__module__": "torch"})
    nn = SimpleNamespace(Module=type("Module", (), {"__module__": "torch.nn"}))
    library = None


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    sys.modules["torch"] = _Torch("torch")
    sys.modules["torch"].__spec__ = ModuleSpec("torch", None)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda writer, node: mathml(writer, node, block=False), None),
        block_renderers=(lambda writer, node: mathml(writer, node, block=True), None),
    )
    app.connect("builder-inited", write_api)
    app.connect("source-read", adapt_page)
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)
    app.connect("autodoc-skip-member", skip_field)
    app.connect("autodoc-process-signature", shorten_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
