"""How the files may depend on one another, and what must not occur in them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "memscope").glob("*.py"))
APP = sorted((ROOT / "app").rglob("*.py"))
TORCH_FREE = ("usage", "store", "query", "plots", "aggregate", "tokenizer", "corpus", "sentences", "wiki", "files")


def imported(path: Path, top_level: bool = False) -> set[str]:
    """Modules that a file imports, ``memscope.x`` for the package's own; functions left out on request."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(tree.body if top_level else ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module in ("memscope", "app")}
    return names


GRAPH = {f"memscope.{path.stem}": {name for name in imported(path) if name.startswith("memscope.")} for path in PACKAGE}


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
    assert {"memscope.config", "memscope.train"} <= GRAPH.keys()  # else the tests here prove nothing
    assert {"memscope.config", "memscope.files", "memscope.errors"} <= reachable("memscope.train")


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_the_package_imports_no_page_no_analysis_and_no_streamlit(path: Path) -> None:
    roots = {name.partition(".")[0] for name in imported(path)}
    assert not roots & {"streamlit", "app", "analyses", "tests"}


@pytest.mark.parametrize("name", TORCH_FREE)
def test_torch_stays_out_of_what_the_app_and_the_report_read(name: str) -> None:
    modules = {f"memscope.{name}"} | reachable(f"memscope.{name}")
    for module in modules & GRAPH.keys():
        path = ROOT / "memscope" / f"{module.removeprefix('memscope.')}.py"
        roots = {imported_name.partition(".")[0] for imported_name in imported(path)}
        assert not roots & {"torch", "transformer_lens", "accelerate"}, module


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
        "from memscope.cli import main\n"
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
