"""Write the pages that come from the code and from other pages: ``make docs``.

The commands' help becomes reference/cli.md, the config's docstrings config.md, docstrings of public names api.md, and
the entries of the lab book its index. The tests compare, so that the pages cannot fall behind.
"""

import ast
import re
from collections import Counter
from pathlib import Path
from typing import Any

import typer

from memscope.cli.main import app
from memscope.config.load import SECTIONS

DOCS = Path(__file__).parent
PUBLIC = {
    "query.recording": ["Recording"],
    "query.tables": ["RecordingTables"],
    "query.entry_cards": ["EntryCard"],
    "recording.census_file": [
        "Census",
        "Counted",
        "LayerMetrics",
        "Weightings",
        "Evenness",
        "Reading",
        "Profiles",
        "Information",
        "Overlap",
        "Group",
    ],
    "recording.token_table": ["Trace"],
    "routing.group_effects": ["read_group_effects"],
    "run.checkpoint": ["load_run", "LoadedRun"],
    "run.subject": ["Subject", "Selected", "run_windows"],
    "run.adapters.own": ["capture_memory", "OwnRun"],
    "run.adapters.load": ["open_subject"],
    "recording.sites": ["Site"],
    "routing.load": ["load_matrix", "load_table"],
    "routing.domains": ["domain_lift", "domain_divergence"],
    "routing.vocabulary": ["vocabulary"],
    "routing.pairs": ["coactivation", "EntryPairs"],
    "routing.paths": ["transitions", "LayerMoves", "frequent_paths"],
    "routing.saturation": ["saturation"],
    "routing.atlas": ["atlas"],
    "run.adapters.experts": ["HuggingFaceExperts"],
    "run.adapters.modules": ["ModuleSubject"],
    "run.adapters.module_site": ["ModuleSite", "Choice", "Call"],
    "run.adapters.memories": ["bag_site", "peer_site"],
    "run.adapters.neurons": ["run_neurons", "folder_neurons", "model_neurons", "neuron_sites"],
    "run.adapters.features": ["record_features", "feature_site"],
    "run.provenance": ["start_entries", "start_table"],
    "causal.intervene": ["ablate", "ablate_selections", "force", "swap", "rewrite", "unbias", "scale"],
    "causal.selections": ["ablate", "force", "swap", "scale", "replay"],
    "causal.group_effects": ["domain_effects", "write_domain_effects"],
    "causal.attribution": ["attribute", "Attribution"],
    "causal.edit": ["encode_sentence"],
    "causal.ablation": ["recorded_corpus"],
    "config.load": ["load_config", "Config"],
    "train.loop": ["train"],
    "record.loop": ["record", "RecordOptions"],
    "report.gate_bias.write": ["write_report"],
    "report.anomalies": ["find_anomalies"],
    "testing.models": ["plant_run", "PlantedRun"],
    "testing.recordings": ["plant_recording", "Planted"],
}
"""Modules of memscope and their names that scripts may use."""
_INDEX = "| date | question | answer |\n"


def commands() -> dict[str, Any]:
    """Every command by its name; one of a group by both, as ``import vllm``."""
    found: dict[str, Any] = {}
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        inner = getattr(command, "commands", {})
        found |= {f"{name} {one}": of_group for one, of_group in inner.items()} or {name: command}
    return found


def render_cli() -> str:
    """Every command with its arguments and options, as Markdown."""
    lines = ["# Commands", "", "`memscope COMMAND --help` prints the same. Results go to standard output, progress to"]
    lines += ["standard error; exit status 2 with one line means bad input.", ""]
    for name, command in commands().items():
        parameters = [p for p in command.params if p.name != "help"]
        arguments = " ".join(str(p.metavar) for p in parameters if p.param_type_name == "argument")
        lines += [f"## memscope {name}", "", command.help or "", "", f"    memscope {name} {arguments}".rstrip(), ""]
        lines += ["| option | default | meaning |", "| --- | --- | --- |"]
        for parameter in parameters:
            is_option = parameter.param_type_name == "option"
            label = " / ".join([*parameter.opts, *parameter.secondary_opts]) if is_option else parameter.metavar
            default = "" if parameter.required or parameter.default is None else f"`{parameter.default}`"
            lines.append(f"| `{label}` | {default} | {getattr(parameter, 'help', '') or ''} |")
        lines.append("")
    return "\n".join(lines)


def render_config() -> str:
    """Every config value with its default and meaning, as Markdown."""
    lines = ["# Config values", "", "A config is YAML with these sections; `--set key=value` changes one.", ""]
    for section, cls in SECTIONS.items():
        lines += [f"## {section}", "", cls.__doc__ or "", "", "| key | default | meaning |", "| --- | --- | --- |"]
        for key, field in cls.model_fields.items():
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            lines.append(f"| `{key}` | `{field.default}` | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def render_api() -> str:
    """Every public name with its signature and docstring, as Markdown, read from the source without importing it.

    Raises:
        KeyError: a name of ``PUBLIC`` that its module does not define.
    """
    lines = [
        "# Python API",
        "",
        "The names that scripts may use; other names may change. `Recording`, `capture_memory` and",
    ]
    lines += ["`load_run` can be imported from `memscope` itself.", "", "| module | names |", "| --- | --- |"]
    seen: Counter[str] = Counter()
    for module, names in PUBLIC.items():
        links = []
        for name in names:
            earlier = seen[name.lower()]  # headings alike are told apart by a number
            links.append(f"[{name}](#{name.lower()}{f'-{earlier}' if earlier else ''})")
            seen[name.lower()] += 1
        lines.append(f"| `memscope.{module}` | {', '.join(links)} |")
    lines.append("")
    for module, names in PUBLIC.items():
        tree = ast.parse((DOCS.parent / "memscope" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        lines += [f"## memscope.{module}", ""]
        for name in names:
            node = defined[name]
            lines += _class_lines(node) if isinstance(node, ast.ClassDef) else _function_lines(node, f"### {name}")
    return "\n".join(lines)


def _class_lines(cls: ast.ClassDef) -> list[str]:
    """A class: docstring, its fields as a table, its public methods and properties."""
    bases = ", ".join(ast.unparse(base) for base in cls.bases)
    lines = [f"### {cls.name}", "", f"    class {cls.name}({bases})" if bases else f"    class {cls.name}", ""]
    lines += [*_docstring(cls), ""]
    fields = []
    for node, after in zip(cls.body, [*cls.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_"):
            described = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            meaning = " ".join(str(ast.literal_eval(after.value)).split()) if described else ""  # type: ignore[union-attr]
            fields.append(f"| `{node.target.id}` | `{_escape(ast.unparse(node.annotation))}` | {_escape(meaning)} |")
    if fields:
        lines += ["| field | type | meaning |", "| --- | --- | --- |", *fields, ""]
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            lines += _function_lines(node, f"#### {cls.name}.{node.name}")
    return lines


def _function_lines(function: ast.FunctionDef, heading: str) -> list[str]:
    """A function, method or property: signature and docstring."""
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    is_property = any(name.endswith("property") for name in decorators)
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    arguments = "" if is_property else f"({_arguments(function)})"
    kind = ["    @contextmanager"] if "contextmanager" in decorators else []
    return [heading, "", *kind, f"    {function.name}{arguments}{returns}", "", *_docstring(function), ""]


def _arguments(function: ast.FunctionDef) -> str:
    """The arguments without ``self``."""
    return re.sub(r"^self(, )?", "", ast.unparse(function.args))


def _docstring(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    """The docstring as Markdown: single backticks, ``Args:``, ``Raises:`` and so on as lists, tables as they are."""
    text = (ast.get_docstring(node) or "").replace("``", "`")
    text = re.sub(r"^={3,} .*\n(.+\n)+={3,} .*$", lambda table: f"```\n{table[0]}\n```", text, flags=re.MULTILINE)
    lines: list[str] = []
    in_section = False
    for line in text.split("\n"):
        if line == "```":
            in_section = False
        if line == "Example:":
            in_section = False
            lines += [line, ""]
        elif re.fullmatch(r"(Args|Returns|Yields|Raises):", line):
            in_section = True
            lines += [line, ""]
        elif in_section and re.match(r" {4}\S", line):
            lines.append(f"- {line.strip()}")
        elif in_section and line.strip():
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return lines


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("``", "`")


def render_log_index() -> str:
    """docs/log/README.md with its table made anew from the entries beside it, newest first.

    Raises:
        ValueError: an entry without title, date or answer.
    """
    intro = (DOCS / "log" / "README.md").read_text(encoding="utf-8").partition(_INDEX)[0]
    rows = []
    for page in sorted((DOCS / "log").glob("*.md")):
        if page.name == "README.md":
            continue
        entry = re.match(
            r"# (?P<title>.+)\n\n- Date: (?P<date>[\d-]{10}), commit `\w+`\.(.*\n)+?- Answer: (?P<answer>(.+\n)+)\n",
            page.read_text(encoding="utf-8"),
        )
        if entry is None:
            raise ValueError(
                f"{page}: starts with no '# question', '- Date: YYYY-MM-DD, commit `...`.' and '- Answer: ...'"
            )
        answer = " ".join(entry["answer"].split())
        rows.append((entry["date"], f"| {entry['date']} | [{entry['title']}]({page.name}) | {answer} |"))
    rows.sort(key=lambda row: row[0], reverse=True)
    return "\n".join([intro + _INDEX + "| --- | --- | --- |", *(row for _, row in rows)])


PAGES = {
    "reference/cli.md": render_cli,
    "reference/config.md": render_config,
    "reference/api.md": render_api,
    "log/README.md": render_log_index,
}
"""Generated pages and what makes them."""


if __name__ == "__main__":
    for name, render in PAGES.items():
        (DOCS / name).write_text(render() + "\n", encoding="utf-8")
