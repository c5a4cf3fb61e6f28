"""Make a run of a checkpoint of the founding experiment (1.4.1): a MiniMind whose feed-forward layers are a memory.

    memscope import minimind out/experiment_1_4_1/pretrain_512.pth --config experiment_1_4_1 \\
        --tokenizer tokenizer.json --read-scores multiply --out runs/experiment_1_4_1

Its parameters are those of ``MemoryTransformer`` one by one, under other names. What weights cannot say, the config
must: heads, and entries selected. How its read used gate scores is printed nowhere, so whoever imports says it; here
the read multiplies its weights by them.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from memscope.base.errors import InputError
from memscope.base.files import disk_errors, make_folder, write_text
from memscope.config.load import Config, dump_config
from memscope.config.memory import MemoryConfig
from memscope.model.transformer import MemoryTransformer
from memscope.run.checkpoint import list_files
from memscope.run.folder import CONFIG, MODEL
from memscope.text.tokenizer import Tokenizer

_BLOCK = {
    **{f"attention.w{one}.weight": f"attn.{one}_proj.weight" for one in "qkvo"},
    **{f"cross_attention_memory.{one}_proj.weight": f"memory.read.{one}_proj.weight" for one in "qkvo"},
    "attention_norm.weight": "attn_norm.weight",
    "memory_norm.weight": "ffn_norm.weight",
    "memory_gate.gate_proj.weight": "memory.gate.proj.weight",
    "memory_gate.memory_keys": "memory.gate.keys",
}
"""Names of one block's parameters there and here."""
_WHOLE = {"tok_embeddings.weight": "embed.weight", "memory_bank": "bank.entries", "norm.weight": "norm.weight"}
_TIED = "output.weight"
"""The unembedding, which is the embedding again."""
_FORM = (
    *("knowledge_length", "gate", "gate_heads", "bank_groups", "score_fn", "normalize_scores", "token_shift"),
    *("balance_bias", "read_slices", "read_fn", "slot_proj", "read_norm", "output_gate"),
)
"""Config values that the founding model fixes; each has it as its default."""


def import_minimind(checkpoint: Path, config: Config, tokenizer: Path, run: Path) -> MemoryTransformer:
    """Write the run folder of a checkpoint, without ``bank_init.*``: what its entries started from is not known.

    Args:
        checkpoint: a state dict, as ``torch.save`` writes it; only tensors are read of it.
        config: shape of the model.
        tokenizer: its ``tokenizer.json``.
        run: folder to write.

    Raises:
        InputError: the checkpoint cannot be read or has other parameters or shapes than the config gives, or the
            folder holds a run.
    """
    if (run / CONFIG).is_file():
        raise InputError(f"{run}: holds a run already; choose another --out")
    _check_form(config)
    spoken = Tokenizer.adopt(tokenizer)
    if spoken.vocab_size != config.model.vocab_size:
        raise InputError(f"{tokenizer}: has {spoken.vocab_size} ids, model.vocab_size is {config.model.vocab_size}")
    model = MemoryTransformer(config)
    model.load_state_dict(convert(_read(checkpoint), model.state_dict(), str(checkpoint)))
    make_folder(run)
    spoken.save(run / "tokenizer.json")
    write_text(run / CONFIG, dump_config(config))
    with disk_errors(run / MODEL):
        save_file(model.state_dict(), run / MODEL)
    list_files(run)
    return model.eval()


def convert(theirs: dict[str, Tensor], ours: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Parameters under our names, in float32.

    Args:
        theirs: state dict of the founding model.
        ours: state dict of the model that is filled, for names and shapes.
        source: the checkpoint, for messages.

    Raises:
        InputError: a parameter is unknown, missing or of another shape.
    """
    known: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        if name == _TIED:
            if not torch.equal(tensor, theirs.get("tok_embeddings.weight", tensor.new_empty(0))):
                raise InputError(
                    f"{source}: '{name}' is not tok_embeddings.weight; an unembedding of its own is unknown"
                )
            continue
        here = _our_name(name)
        if here not in ours:
            raise InputError(f"{source}: '{name}' is no parameter of the model that the config describes")
        wanted = ours[here].shape
        if tensor.numel() != wanted.numel() or [n for n in tensor.shape if n > 1] != [n for n in wanted if n > 1]:
            raise InputError(f"{source}: '{name}' has shape {tuple(tensor.shape)}, the config gives {tuple(wanted)}")
        known[here] = tensor.float().reshape(wanted)
    if missing := sorted(ours.keys() - known.keys()):
        raise InputError(f"{source}: has no parameter for '{missing[0]}'")
    return known


def _our_name(name: str) -> str:
    """Our name of a parameter; empty for an unknown one."""
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", name):
        inner = _BLOCK.get(match[2])
        return f"blocks.{match[1]}.{inner}" if inner else ""
    return _WHOLE.get(name, "")


def _read(checkpoint: Path) -> dict[str, Tensor]:
    try:
        read = torch.load(checkpoint, map_location="cpu", weights_only=True)  # runs no code of the file
    except FileNotFoundError as error:
        raise InputError(f"{checkpoint}: no such checkpoint") from error
    except Exception as error:  # of many kinds, as the file is damaged
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{checkpoint}: no checkpoint of tensors alone ({reason})") from error
    if not isinstance(read, dict) or not read:
        raise InputError(f"{checkpoint}: holds no state dict")
    for name, tensor in read.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise InputError(f"{checkpoint}: '{name}' is no tensor; give a state dict alone")
    return read


def _check_form(config: Config) -> None:
    for key in _FORM:
        value, default = getattr(config.memory, key), MemoryConfig.model_fields[key].default
        if value != default:
            raise InputError(f"memory.{key} is {value!r}, the founding model's is {default!r}")
    if set(config.model.blocks) != {"memory"} or config.model.bigram_rows:
        raise InputError("model.block must be memory in all layers, and model.bigram_rows 0: so was the founding model")
