"""How processes train one model together: each with a copy of it (DDP), or each with a shard of it (FSDP2).

    torchrun --nproc_per_node 4 -m memscope train ...                                        # DDP
    memscope presets accelerate/fsdp2 > fsdp2.yaml                                           # or accelerate/deepspeed
    accelerate launch --config_file fsdp2.yaml -m memscope train ...

Processes, devices and trackers are Hugging Face Accelerate's, and so are the variables that say which of them it is.
FSDP2 is PyTorch's ``fully_shard`` itself: Accelerate has it on accelerators only, and on CPUs would copy in silence.
A checkpoint holds whole tensors, whoever wrote it, so that any number of processes goes on from it in any way.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from memscope.base.errors import InputError
from memscope.base.runtime import pick_device
from memscope.config.load import Config
from memscope.config.training import TrainConfig
from memscope.model.transformer import MemoryTransformer
from memscope.run.checkpoint import TrainingState
from memscope.train.optimizer import average_sparse_gradients, clip_gradients, make_optimizer

Strategy = Literal["ddp", "fsdp2", "deepspeed"]


class Parallel(ABC):
    """A model with its optimiser as one of several processes trains it; all processes make every call."""

    model: Callable[[Tensor], Tensor]
    """The model as training calls it."""
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def accumulating(self, more: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of a batch: whether the step goes on with one more."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's share of the batch."""

    @abstractmethod
    def step(self, max_norm: float) -> Tensor:
        """Clip the gradients that processes have in common, update, forget them; returns their norm before."""

    @abstractmethod
    def state(self) -> TrainingState:
        """Whole tensors, in the main process; nothing in the others."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on with the whole optimiser state of a checkpoint; the weights were loaded before."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what must not outlive the processes' group, before the group ends."""


def strategy() -> Strategy:
    """The strategy that ``accelerate launch`` sets, or its variables set by hand; ``ddp`` alone and under torchrun."""
    if int(os.environ.get("LOCAL_RANK", "-1")) >= 0:
        for name, variable in (("fsdp2", "ACCELERATE_USE_FSDP"), ("deepspeed", "ACCELERATE_USE_DEEPSPEED")):
            if _is_on(variable):
                return name  # type: ignore[return-value]
    return "ddp"


def check_strategy(config: Config) -> None:
    """Refuse what cannot work, before anything is written.

    Raises:
        InputError: for it, naming the value to change.
    """
    kind, has_bank = strategy(), bool(config.model.memory_layers)
    refused = {
        "lazy_bank=true: its gradient is sparse, which only DDP averages; add --set lazy_bank=false": (
            kind != "ddp" and config.train.lazy_bank and has_bank
        ),
        "revive_after: entries and moments that start again are whole, which only DDP has; set revive_after=0": (
            kind != "ddp" and config.train.revive_after > 0 and has_bank
        ),
        "block=text: keys of all sentences are made of whole weights, which only DDP has; train with DDP": (
            kind != "ddp" and bool(config.model.text_layers)
        ),
        "compile=true, which was not tried with it: set compile=false": kind != "ddp" and config.train.compile,
        "FSDP version 1: set fsdp_version: 2": kind == "fsdp2" and os.environ.get("FSDP_VERSION") != "2",
        "fsdp_offload_params: set it to false": kind == "fsdp2" and _is_on("FSDP_OFFLOAD_PARAMS"),
        "fsdp_activation_checkpointing: set it to false and add --set gradient_checkpointing=true": (
            kind == "fsdp2" and _is_on("FSDP_ACTIVATION_CHECKPOINTING")
        ),
        "DeepSpeed is not installed: pip install deepspeed": kind == "deepspeed" and find_spec("deepspeed") is None,
    }
    for reason, applies in refused.items():
        if applies:
            raise InputError(f"cannot train with {kind} and {reason}")


def make_accelerator(settings: TrainConfig, run: Path, device: str) -> Accelerator:
    """This process among those of the launcher, with the run's tracker. Precision is the model's own affair."""
    tracker = None if settings.tracker == "none" else settings.tracker
    on_cpu, kind = pick_device(device).type == "cpu", strategy()
    handlers = []
    if on_cpu and kind == "deepspeed":  # Accelerate knows DeepSpeed on accelerators only, unless it is told both
        os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
        handlers = [InitProcessGroupKwargs(backend="gloo")]
    accelerator = Accelerator(
        mixed_precision="no",
        cpu=on_cpu and kind != "deepspeed",
        log_with=tracker,
        project_dir=run,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=handlers,
    )
    if tracker:
        accelerator.init_trackers(
            "memscope",
            config=settings.model_dump(),
            init_kwargs={"wandb": {"dir": str(run)}, "swanlab": {"logdir": str(run / "swanlab")}},
        )
    return accelerator


class TorchParallel(Parallel):
    """One process alone, copies (DDP) or shards (FSDP2). Sharded parameters and gradients are DTensors."""

    def __init__(self, net: MemoryTransformer, settings: TrainConfig, accelerator: Accelerator):
        self.net, self._accelerator = net, accelerator
        if strategy() == "fsdp2":
            shard(net, accelerator.device, keep=not _is_on("FSDP_RESHARD_AFTER_FORWARD", "true"))
            self.model = net
        else:
            self.model = accelerator.prepare_model(net)
        self.optimizer = make_optimizer(net, settings)

    def accumulating(self, more: bool) -> AbstractContextManager[None]:
        """See ``Parallel``. Shards are added up at once: to wait would take whole gradients."""
        copies = not isinstance(self.net, FSDPModule)
        return self._accelerator.no_sync(self.model) if more and copies else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See ``Parallel``."""
        loss.backward()

    def step(self, max_norm: float) -> Tensor:
        """See ``Parallel``."""
        average_sparse_gradients(self.net.parameters())
        norm = clip_gradients(self.net.parameters(), max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> TrainingState:
        """See ``Parallel``."""
        return training_state(self.net, self.optimizer, keep=self._accelerator.is_main_process)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """See ``Parallel``."""
        restore_optimizer(self.net, self.optimizer, tensors)

    def close(self) -> None:
        """See ``Parallel``.

        A copy's reducer must not be the last to hold the group: it would end it under Python's lock, and gloo's thread
        may hold the group's lock and wait for Python's, so that a trained run would stand still for ever.
        """
        self.model = self.net
        self._accelerator.free_memory()


def shard(net: MemoryTransformer, device: torch.device, keep: bool = False) -> None:
    """Replace every parameter by this process's rows of it (PyTorch's FSDP2).

    A block is gathered while it works, and again in the backward pass unless all should ``keep`` it. Embedding and
    bank are the root's, which is there from the first layer to the end of the backward pass: all layers read them.
    """
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for block in net.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=not keep)
    fully_shard(net, mesh=mesh, reshard_after_forward=False)


def training_state(net: MemoryTransformer, optimizer: torch.optim.Optimizer, keep: bool = True) -> TrainingState:
    """Whole tensors by name; shards are gathered one tensor after the other, by all processes, for those that ``keep``.

    Optimiser state is named as its parameter, a slash and its own key.
    """
    for module in net.modules():
        if isinstance(module, FSDPModule):  # after a pass without gradients the root's parameters stand there whole
            module.reshard()
    state = {
        f"{name}/{key}": value
        for name, parameter in net.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return TrainingState(_whole(net.state_dict(), keep), _whole(state, keep))


def restore_optimizer(net: MemoryTransformer, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give every parameter its state, of which sharded ones take their part."""
    names = {parameter: name for name, parameter in net.named_parameters()}
    state = optimizer.state_dict()
    groups = zip(optimizer.param_groups, state["param_groups"], strict=True)
    numbers = {p: number for group, saved in groups for p, number in zip(group["params"], saved["params"], strict=True)}
    state["state"] = {
        number: {key: _like(parameter, value) for key, value in state_of(names[parameter], tensors).items()}
        for parameter, number in numbers.items()
    }
    optimizer.load_state_dict(state)  # which knows on what device and in what type each value must be


def state_of(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The optimiser state of one parameter; empty if it was never updated."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def _whole(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    whole = {}
    for name, tensor in tensors.items():
        gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            whole[name] = gathered.cpu() if isinstance(tensor, DTensor) else gathered
    return whole


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """A whole value, or this process's shard of it if the parameter is sharded and the value of its shape."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        whole = value.to(parameter.device)
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def _is_on(variable: str, default: str = "false") -> bool:
    return os.environ.get(variable, default).lower() in ("1", "true", "yes")
