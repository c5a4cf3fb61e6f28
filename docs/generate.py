"""Write docs/reference/cli.md and config.md from the commands' help and the config's docstrings: ``make docs``.

The tests call ``render_cli`` and ``render_config`` and compare, so that the pages cannot fall behind.
"""

from pathlib import Path

import typer

from memscope.cli.main import app
from memscope.config.load import SECTIONS


def render_cli() -> str:
    """Every command with its arguments and options, as Markdown."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    lines = ["# Commands", "", "`memscope COMMAND --help` prints the same. Results go to standard output, progress to"]
    lines += ["standard error; exit status 2 with one line means bad input.", ""]
    for name, command in group.commands.items():
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


if __name__ == "__main__":
    folder = Path(__file__).parent / "reference"
    (folder / "cli.md").write_text(render_cli() + "\n", encoding="utf-8")
    (folder / "config.md").write_text(render_config() + "\n", encoding="utf-8")
