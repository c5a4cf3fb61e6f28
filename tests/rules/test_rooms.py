"""Which room may know which, and what must not occur in any."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RANKS = (
    {"base", "stats", "model.ops.gpu"},
    {"config", "text", "notebook"},
    {"model.ops", "text_bank"},
    {"model.text"},
    {"model", "recording"},
    {"run", "census.firing", "census.anomalies"},
    {"run.adapters"},
    {"train.lessons"},
    {"census", "train", "query", "bank_map"},
    {"record", "testing", "routing", "query.charts"},
    {"causal", "report.plots"},
    {"causal.sentences", "causal.what_if"},
    {"report"},
    {"report.gate_bias", "report.compare", "export"},
    {"cli"},
)
"""Rooms of ``memscope``, lowest first: a room imports only from rooms that stand in an earlier line."""
WITHOUT_TORCH = {
    "stats",
    "config",
    "notebook",
    "text",
    "text_bank",
    "recording",
    "census",
    "query",
    "routing",
    "report",
    "export",
}
"""Rooms, with the rooms in them, whose modules import torch neither themselves nor by way of others."""
FOR_THE_APP = {"base", "stats", "config", "text", "recording", "census", "query", "routing", "record", "causal"}
FOR_THE_APP |= {"report"}
"""Rooms that the app may import, but for what needs torch."""
RUNS_MODELS = "app.model.asked"
"""What the app runs in a process of its own; it imports what it needs when something is asked."""
READS_PTH = "memscope.run.minimind"
"""Reads checkpoints that ``torch.save`` wrote, by ``torch.load(weights_only=True)``, which makes tensors alone."""
MOST_MODULES = 10
MOST_LINES = 350


def module_name(path: Path) -> str:
    """``memscope.room.x`` for a file; a folder's ``__init__`` is the folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for name in ("memscope", "app") for path in sorted((ROOT / name).rglob("*.py"))}
MODULES = [name for name, path in FILES.items() if path.name not in ("__init__.py", "__main__.py")]


@cache
def tree(module: str) -> ast.Module:
    """The code of a module; not read while tests are collected, which every process does."""
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imported(*trees: ast.AST) -> set[str]:
    """Names that code imports, those in functions and under TYPE_CHECKING included."""
    names: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@cache
def imports(module: str) -> set[str]:
    return imported(tree(module))


@cache
def modules_of(module: str) -> set[str]:
    """Modules of memscope and the app that a module imports."""
    return imports(module) & set(MODULES)


def room(module: str) -> str:
    """The folder of a module of ``memscope``: ``report.plots`` for ``memscope.report.plots.style``."""
    return module.removeprefix("memscope.").rpartition(".")[0]


def reachable(module: str) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = modules_of(waiting.pop()) - found
        found |= new
        waiting += new
    return found


def arrows(package: str) -> Iterator[tuple[str, str]]:
    yield from ((name, other) for name in MODULES if name.startswith(f"{package}.") for other in modules_of(name))


def test_the_arrows_are_those_of_the_package() -> None:
    assert "memscope.model.gate" in modules_of("memscope.model.layer")  # else the tests here prove nothing
    assert {"memscope.config.load", "memscope.base.files"} <= reachable("memscope.train.loop")
    assert {room(name) for name in MODULES if name.startswith("memscope.")} == set().union(*RANKS)


def test_a_room_imports_only_lower_rooms() -> None:
    rank = {name: number for number, line in enumerate(RANKS) for name in line}
    offenders = [
        f"{name} imports {other}"
        for name, other in arrows("memscope")
        if room(name) != room(other) and rank[room(other)] >= rank[room(name)]
    ]
    assert not offenders


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert not [name for name in MODULES if name in reachable(name)]


def test_torch_stays_out_of_what_the_app_and_the_report_read() -> None:
    heavy = {"torch", "transformer_lens", "accelerate", "jaxtyping"}
    offenders = [
        f"{name}, by way of {other}"
        for name in MODULES
        if name.split(".")[1] in WITHOUT_TORCH and name.startswith("memscope.")
        for other in {name} | reachable(name)
        if heavy & {module.partition(".")[0] for module in imports(other)}
    ]
    assert not offenders


def test_the_package_imports_no_page_no_analysis_and_no_streamlit() -> None:
    outside = {"streamlit", "app", "analyses", "tests", "benchmarks", "docs"}
    offenders = {
        name: found
        for name in MODULES
        if name.startswith("memscope.") and (found := outside & {module.partition(".")[0] for module in imports(name)})
    }
    assert not offenders


def test_the_process_of_the_pages_loads_no_torch_and_parts_know_no_page() -> None:
    at_once = imported(*(node for node in tree(RUNS_MODELS).body if isinstance(node, ast.Import | ast.ImportFrom)))
    offenders = [
        f"{name} imports {other}"
        for name, other in arrows("app")
        if other.startswith("memscope.") and (name != RUNS_MODELS or other in at_once)
        if other.split(".")[1] not in FOR_THE_APP
        or any("torch" in imports(part) for part in {other} | reachable(other))
    ]
    offenders += [f"{name} imports {other}" for name, other in arrows("app") if other.startswith("app.app_pages.")]
    assert not offenders


def test_a_folder_holds_few_modules_and_its_init_defines_nothing() -> None:
    folders = {path.parent for path in FILES.values()}
    crowded = [folder for folder in folders if len([*folder.glob("[!_]*.py")]) > MOST_MODULES]
    assert not crowded
    for name in FILES.keys() - set(MODULES) - {"memscope"}:
        if FILES[name].name == "__init__.py":
            [docstring] = tree(name).body
            assert isinstance(docstring, ast.Expr) and str(ast.literal_eval(docstring.value)).count("\n") == 0, name


def test_files_stay_short() -> None:
    long = {name: lines for name, path in FILES.items() if (lines := len(path.read_text().splitlines())) > MOST_LINES}
    assert not long


def test_no_pickle_is_loaded_and_no_raw_html_shown() -> None:
    offenders, safe = [], set()
    for name in MODULES:
        for node in ast.walk(tree(name)):
            words = isinstance(node, ast.keyword) and node.arg in ("unsafe_allow_html", "allow_pickle")
            calls = isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save", "np.load")
            tensors = name == READS_PTH and isinstance(node, ast.Call) and "weights_only=True" in ast.unparse(node)
            safe |= {id(node.func)} if tensors and isinstance(node, ast.Call) else set()
            offenders += [f"{name}:{node.lineno}"] if words or (calls and id(node) not in safe) else []
        if {module.partition(".")[0] for module in imports(name)} & {"pickle", "joblib", "dill", "shelve"}:
            offenders.append(name)
    assert not offenders


@pytest.mark.slow
def test_what_is_imported_brings_nothing_along_that_it_does_not_need() -> None:
    never = {
        "memscope.cli.serve": {"streamlit", "app"},
        "memscope.bank_map.layout": {"torch", "umap"},
        "memscope.report.gate_bias.write": {"torch", "matplotlib.pyplot"},
        "memscope.report.compare.comparison": {"torch", "matplotlib.pyplot"},
        "app.state": {"torch"},
    }
    steps = [f"import {name}; assert not {words!r} & sys.modules.keys(), {name!r}" for name, words in never.items()]
    done = subprocess.run([sys.executable, "-c", "\n".join(["import sys", *steps])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
