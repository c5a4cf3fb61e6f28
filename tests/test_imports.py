"""How the files may depend on one another, and what must not occur in them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "memscope").rglob("*.py"))
APP = sorted((ROOT / "app").rglob("*.py"))
WITH_TORCH = {
    # the model and what runs it
    *(
        "attention",
        "bigrams",
        "gate",
        "balance",
        "memory",
        "entry_means",
        "entry_starts",
        "provenance",
        "revive",
        "native",
        "fused",
        "sparse_read",
        "model",
        "capture",
        "checkpoint",
        "runtime",
        "prepare",
        "optimizer",
        "parallel",
        "zero",
        "train",
    ),
    *("timing", "evaluate", "generate"),
    # recording and decoding; rows are made of captured tensors
    *("record", "rows", "decode", "trace", "history", "project", "map_spaces"),
    # experiments on a model, and models whose answer is known
    *("intervene", "effects", "ablation", "attribution", "facts", "edit", "what_if", "testing_models"),
    # commands import what they need when they run
    *("cli", "cli_options", "cli_causal", "cli_share", "__main__"),
}
"""Modules below ``memscope`` that may import torch, themselves or by way of others; no new one gets in unnoticed."""


def module_name(path: Path) -> str:
    """``memscope.x`` for a file; a folder's ``__init__`` is the folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Modules that a file imports, functions included, ``memscope.x`` for the package's own."""
    names: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue  # never runs
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


MODULES = {module_name(path): path for path in PACKAGE}
GRAPH = {name: (imported(path) & MODULES.keys()) - {"memscope"} for name, path in MODULES.items()}


def reachable(module: str) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = GRAPH.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_no_module_imports_itself_by_way_of_others(module: str) -> None:
    assert module not in reachable(module)


def test_the_graph_is_that_of_the_package() -> None:
    assert {"memscope.config.load", "memscope.train.loop"} <= GRAPH.keys()  # else the tests here prove nothing
    assert "memscope.model.memory" in GRAPH["memscope.model.transformer"]
    assert {"memscope.config.load", "memscope.base.files", "memscope.base.errors"} <= reachable("memscope.train.loop")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_the_package_imports_no_page_no_analysis_and_no_streamlit(module: str) -> None:
    roots = {name.partition(".")[0] for name in imported(MODULES[module])}
    assert not roots & {"streamlit", "app", "analyses", "tests", "benchmarks", "docs"}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {f"memscope.{name}" for name in WITH_TORCH}))
def test_torch_stays_out_of_what_the_app_and_the_report_read(module: str) -> None:
    for name in {module} | reachable(module):
        roots = {imported_name.partition(".")[0] for imported_name in imported(MODULES[name])}
        assert not roots & {"torch", "transformer_lens", "accelerate", "jaxtyping"}, name


def test_every_module_that_may_import_torch_does() -> None:
    for name in WITH_TORCH - {"__main__"}:
        reached = {f"memscope.{name}"} | reachable(f"memscope.{name}")
        assert any("torch" in imported(MODULES[module]) for module in reached), name


@pytest.mark.parametrize("path", [*PACKAGE, *APP], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


@pytest.mark.parametrize("path", [*PACKAGE, *APP], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_is_loaded_and_no_raw_html_shown(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.keyword) and node.arg in ("unsafe_allow_html", "allow_pickle"))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save"), ("np", "load")}
    assert not {name.partition(".")[0] for name in imported(path)} & {"pickle", "joblib", "dill", "shelve"}


def test_help_imports_none_of_the_heavy_packages() -> None:
    script = (
        "import sys\n"
        "sys.argv = ['memscope', '--help']\n"
        "from memscope.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stderr.strip().splitlines()[-1]))
    assert "Usage" in done.stdout
    assert "typer" in loaded
    heavy = {"torch", "transformer_lens", "accelerate", "umap", "numba", "streamlit", "pandas", "numpy", "duckdb"}
    assert not loaded & heavy
