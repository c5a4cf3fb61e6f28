"""What a GPU trains, records and ablates, beside the CPU. Kernel by kernel: ``tests/model/ops/test_gpu.py``."""

from pathlib import Path

import numpy as np
import pytest
import torch

from memscope.causal.ablation import recorded_corpus, study_ablation
from memscope.causal.effects import entry_usage, top_entries
from memscope.config.load import Config
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import load_run
from memscope.train.loop import train
from tests.conftest import tiny_config

pytestmark = [pytest.mark.cuda, pytest.mark.slow]

DEVICE = "cuda"
NONE = {"database_init_path": None}
MEMORY = {"read_fn": "gelu", "read_norm": "rms", "slot_proj": False, "read_slices": 2, "score_fn": "relu"}
CONFIGS = {
    "full gate": {"gate": "full", **NONE},
    "recommended": {**MEMORY, "gate_heads": 2, "token_shift": True, "balance_bias": 0.01, "output_gate": "query"},
    "slots in bfloat16": {**MEMORY, "knowledge_length": 3, "entry_dtype": "bfloat16", "bank_groups": 2} | NONE,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_gpu_trains_records_and_ablates_as_a_cpu(name: str, corpus_dir: Path, tmp_path: Path) -> None:
    sizes = {"knowledge_num": 128} if name == "slots in bfloat16" else {}
    lazy = {"lazy_bank": name != "full gate"}
    config = tiny_config(corpus_dir, memory=CONFIGS[name] | sizes, train={"steps": 10, **lazy})
    trained = {device: train(config, tmp_path / device, device=device) for device in ("cpu", DEVICE)}
    assert trained[DEVICE]["device"].startswith(DEVICE)
    assert trained[DEVICE]["valid_loss"] == pytest.approx(trained["cpu"]["valid_loss"], abs=0.02)

    usages, studies = [], []
    for device in trained:  # the model that the GPU trained, on both
        run = OwnRun(load_run(tmp_path / DEVICE, torch.device(device)))
        path = tmp_path / f"recording {device}"
        record(run, corpus_dir / "valid.jsonl", path, RecordOptions(part_tokens=500))
        usages.append(Recording(path).sql("SELECT count FROM usage ORDER BY layer, entry")["count"].to_numpy())
        usage = entry_usage(tmp_path / "recording cpu")
        corpus = recorded_corpus(Recording(path))
        studies.append(study_ablation(run, corpus, top_entries(usage, 0.05), usage, tokens=600).effects)
    assert np.abs(usages[0] - usages[1]).sum() < 0.01 * usages[0].sum()
    for column in ("loss_before", "loss_after", "kl"):
        np.testing.assert_allclose(studies[1][column], studies[0][column], atol=1e-2)


def test_a_gpu_resumes(corpus_dir: Path, tmp_path: Path) -> None:
    def config(steps: int) -> Config:
        return tiny_config(corpus_dir, memory=MEMORY | NONE, train={"steps": steps, "lazy_bank": True})

    train(config(10), tmp_path / "run", device=DEVICE)
    resumed = train(config(20), tmp_path / "run", resume=True, device=DEVICE)
    assert resumed["steps"] == 20 and resumed["peak_gpu_bytes"] > 0
    assert resumed["valid_loss"] < resumed["untrained_valid_loss"]
