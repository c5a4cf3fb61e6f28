"""Open a folder of ``save_pretrained`` (``config.json`` and safetensors) as a subject; nothing is downloaded or run.

subject = open_hugging_face(Path("models/OLMoE-1B-7B"))
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from memscope.base.errors import InputError
from memscope.base.files import read_json, sha256_file
from memscope.run.adapters.experts import HuggingFaceExperts
from memscope.text.tokenizer_file import read_tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_OLDEST = 5


def open_hugging_face(
    folder: Path, device: torch.device | None = None, window: int | None = None
) -> HuggingFaceExperts:
    """Load a mixture of experts and its tokenizer.

    Args:
        folder: of ``save_pretrained``, with the tokenizer.
        device: where to run it; by default the CPU.
        window: most tokens read at once; by default what the model takes, at most 1,024.

    Raises:
        InputError: see ``load_hugging_face``; or the model has no experts.
    """
    model, tokenizer, fingerprint = load_hugging_face(folder, device)
    return HuggingFaceExperts(model, tokenizer, str(folder.resolve()), fingerprint, window)


def load_hugging_face(folder: Path, device: torch.device | None = None) -> tuple[Any, Any, str]:
    """Load any causal language model, in evaluation mode, and its tokenizer; the hash of its weights comes third.

    Args:
        folder: of ``save_pretrained``, with the tokenizer.
        device: where to run it; by default the CPU.

    Raises:
        InputError: transformers 5 is not installed, its weights are not safetensors or incomplete, or the architecture
            is unknown or needs code of its own.
    """
    check_transformers(folder)
    fingerprint = weights_fingerprint(folder)
    if (folder / "tokenizer.json").is_file():
        read_tokenizer(folder / "tokenizer.json")  # says in one line what is wrong with it
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _named_errors(folder, "its model cannot be loaded"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, report = loaded
    if lacking := sorted(report["missing_keys"]):
        raise InputError(
            f"{folder}: {len(lacking)} weights of the model are missing, {lacking[0]} first; copy it again"
        )
    with _named_errors(folder, "its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return model.to(device or torch.device("cpu")).eval(), tokenizer, fingerprint


def check_transformers(folder: Path) -> None:
    """Refuse to go on without transformers 5.

    Raises:
        InputError: it is missing or older.
    """
    try:
        there = version("transformers")
    except PackageNotFoundError:
        there = ""
    if not there or int(there.partition(".")[0]) < _OLDEST:
        found = f"transformers {there} is" if there else "none is"
        raise InputError(
            f"{folder}: a Hugging Face model needs transformers {_OLDEST} or newer, {found} installed; "
            "pip install 'memscope[hf]'"
        )


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 over the hashes of the weight files, in the order of their names.

    Raises:
        InputError: there are none, a file is missing, or they are pickled.
    """
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        listed = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise InputError(f"{folder / INDEX}: has no weight_map; copy the model again")
        names = sorted(set(listed.values()))
    else:
        names = [WEIGHTS]
    for name in names:
        if not (folder / name).is_file():
            pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
            advice = (
                "its weights are pickled, which can run any code; save it again as safetensors"
                if pickled and name == WEIGHTS
                else "copy the model again"
            )
            raise InputError(f"{folder}: no {name}; {advice}")
    return hashlib.sha256("".join(sha256_file(folder / name) for name in names).encode()).hexdigest()


@contextmanager
def _named_errors(folder: Path, what: str) -> Iterator[None]:
    """One line for what transformers raises over a folder that it cannot use."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        said = " ".join(str(error).split())
        if "trust_remote_code" in said:
            said = "it needs code of its own, which is not run"
        raise InputError(f"{folder}: {what} ({said[:300]})") from error
    except Exception as error:  # of safetensors and the tokenizers library, which have no common class
        if type(error).__module__.split(".")[0] in ("safetensors", "tokenizers", "huggingface_hub", "builtins"):
            raise InputError(f"{folder}: {what} ({' '.join(str(error).split())[:300]})") from error
        raise
