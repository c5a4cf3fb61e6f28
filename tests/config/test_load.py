"""Configs load, clash loudly and name the key that was meant."""

from pathlib import Path

import pytest
import yaml

from memscope.base.errors import InputError
from memscope.config.load import SECTIONS, Config, dump_config, load_config, validate_config

PRESETS = sorted((Path(__file__).parents[2] / "memscope" / "presets").glob("*.yaml"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_preset_loads_and_round_trips(preset: Path, tmp_path: Path) -> None:
    config = load_config(preset)
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_a_dumped_config_names_every_key_and_loads_to_the_same(tmp_path: Path) -> None:
    raw = {"model": {"block": ["memory", "ffn"], "n_layers": 2, "dim": 64, "n_heads": 4, "n_kv_heads": 4}}
    config = validate_config(raw | {"train": {"learning_rate": 1e-3}}, source="test")
    text = dump_config(config)
    assert load_config(write(tmp_path, text)) == config
    assert {name: set(section.model_fields) for name, section in SECTIONS.items()} == {
        name: set(values) for name, values in yaml.safe_load(text).items()
    }


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory: {knowlege_num: 64}", r"unknown key 'memory.knowlege_num'; did you mean 'knowledge_num'\?"),
        ("modle: {dim: 64}", r"unknown section 'modle'; did you mean 'model'\?"),
        ("train: {zzz: 1}", "unknown key 'train.zzz'; known are epochs, steps"),
        ("model: {1: 2}", "unknown key 'model.1'"),
        ("model: {dim: wide}", "model.dim: Input should be a valid integer.* got 'wide'"),
        ("model: {dim: 0}", "model.dim: Input should be greater than 0, got 0"),
        ("model: {dim: null}", "model.dim: .*got None"),
        ("memory: {gate: fuzzy}", "memory.gate: Input should be 'full' or 'product', got 'fuzzy'"),
        ("train: {seed: 1.5}", "train.seed: .*got 1.5"),
        ("data: {train_path: 5}", "data.train_path: Input should be a valid string, got 5"),
        ("memory: {num_selected: 9, knowledge_num: 8}", "num_selected=9 exceeds knowledge_num=8; lower num_selected"),
        ("memory: {gate: product, knowledge_num: 65}", "needs a square knowledge_num: 65 is none; try 64"),
        ("memory: {gate: product, knowledge_dim: 5}", "query_dim=5 must be even"),
        ("memory: {read_gain: 2.0}", "read_gain is the gain of normalised read queries: set read_norm=rms"),
        ("memory: {output_gate: open}", "memory.output_gate: Input should be 'query', got 'open'"),
        ("memory: {read_slices: 4}", "read_slices=4 needs slot_proj=false and to divide 128 columns"),
        ("memory: {read_slices: 5, slot_proj: false}", "read_slices=5 needs slot_proj=false and to divide 128 columns"),
        ("memory: {read_slices: 8, slot_proj: false, read_heads: 4}", "read_slices=8 must divide read_heads=4"),
        ("memory: {normalize_scores: true}", "normalize_scores does nothing for softmax scores"),
        ("memory: {num_selected: 1}", "num_selected=1 with score_fn=softmax"),
        ("model: {dim: 100}", "dim=100 is not a multiple of n_heads=32"),
        ("model: {n_kv_heads: 5}", "n_heads=32 is not a multiple of n_kv_heads=5"),
        ("model: {dim: 96}", "dim / n_heads = 3 must be even"),
        ("model: {block: [memory, ffn]}", "block lists 2 kinds for n_layers=8"),
        ("memory: {read_heads: 7}", "dim=512 is not a multiple of read_heads=7"),
    ],
)
def test_a_wrong_config_is_refused_with_the_key_and_the_values(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_config(write(tmp_path, text))
    assert str(tmp_path / "config.yaml") in str(caught.value)


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.dim: .*train\.grad_clip: "):
        load_config(write(tmp_path, "model: {dim: -1}\ntrain: {grad_clip: 0}"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00\x01", "not a text file; a YAML config was expected"),
        (b"a\x00b", "not valid YAML"),
        (b"model: {dim: 64\ntrain: [", "config.yaml:2: not valid YAML"),
        (b"- model\n- memory\n", "a config has the sections model, memory, text, data, train"),
        (b"just words", "a config has the sections"),
        (b"model: 5", "a config has the sections"),
    ],
)
def test_what_is_not_a_config_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_config(path)


def test_a_missing_config_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.yaml: no such"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match=str(tmp_path)):
        load_config(tmp_path)


def test_overrides_take_short_and_full_names_and_typed_values(tmp_path: Path) -> None:
    overrides = ["dim=64", "memory.knowledge_num=4096", "output_gate=true", "learning_rate=1e-3", "block=ffn"]
    config = load_config(write(tmp_path, "model: {dim: 32, n_layers: 3}"), overrides)
    assert (config.model.dim, config.model.n_layers, config.model.block) == (64, 3, "ffn")
    assert (config.memory.knowledge_num, config.memory.output_gate) == (4096, True)
    assert config.train.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("knowlege_num=64", r"--set knowlege_num=64: unknown key 'knowlege_num'; did you mean 'knowledge_num'\?"),
        ("model.dmi=64", r"did you mean 'model.dim'\?"),
        ("train.dim=64", "unknown key 'train.dim'"),
        ("dim", "--set dim: expected key=value"),
        ("dim=[", "the value is not valid YAML"),
        ("dim=", "model.dim: .*got None"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(write(tmp_path, ""), [override])


FIELDS = [(section, name) for section, cls in SECTIONS.items() for name in cls.model_fields]


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_field_is_documented(section: str, name: str) -> None:
    assert SECTIONS[section].model_fields[name].description


def test_no_key_occurs_in_two_sections() -> None:
    names = [name for _, name in FIELDS]
    assert sorted(names) == sorted(set(names))


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().model.dim = 3  # type: ignore[misc]


def test_derived_values_follow_their_rule() -> None:
    config = Config()
    assert config.model.ffn_dim == 1408  # 64 * ceil(8 * 512 / 3 / 64), the experiment's
    assert config.model.head_dim == 16
    assert config.read_heads == 32
    assert validate_config({"memory": {"gate_heads": 4, "num_selected": 8}}, "test").memory.selected == 32
    assert validate_config(
        {"model": {"n_layers": 3, "block": ["ffn", "memory", "memory"]}}, "t"
    ).model.memory_layers == (1, 2)
