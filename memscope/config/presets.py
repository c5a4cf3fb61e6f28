"""The presets that ship with the package, and configs by name or by path.

find_config("demo")            # the preset, wherever memscope is installed
find_config("mine/big.yaml")   # a file
"""

from pathlib import Path

from memscope.base.errors import InputError
from memscope.base.words import did_you_mean

FOLDER = Path(__file__).parents[1] / "presets"


def preset_names() -> list[str]:
    """Names of the configs that ``memscope train`` takes by name."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_config(given: Path | str) -> Path:
    """The file of a config: one at this path, or else the preset of this name.

    Raises:
        InputError: there is neither.
    """
    path = Path(given)
    if str(given) in preset_names() and not path.is_file():
        return FOLDER / f"{given}.yaml"
    if path.exists():
        return path
    raise InputError(f"{given}: no such config file, and no preset{did_you_mean(path.stem, preset_names())}")


def preset_text(name: str) -> str:
    """What a preset says, comments included; also of the launcher's files, as ``accelerate/fsdp2``.

    Raises:
        InputError: there is no such preset.
    """
    files = {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in FOLDER.rglob("*.*")}
    if name not in files:
        raise InputError(f"{name}: no such preset{did_you_mean(name, sorted(files))}")
    return files[name].read_text(encoding="utf-8")
