"""DeepSpeed ZeRO: every process has the model and updates its part of it, with its part of the optimiser's state.

DeepSpeed is no dependency; this file is read only when ``accelerate launch`` asks for it.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from memscope.base.errors import InputError
from memscope.config.training import TrainConfig
from memscope.model.transformer import MemoryTransformer
from memscope.run.checkpoint import TrainingState
from memscope.train.optimizer import make_optimizer
from memscope.train.parallel import Parallel, state_of

_MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroParallel(Parallel):
    """ZeRO stage 1 or 2; DeepSpeed's engine averages, clips and steps. See ``memscope.train.parallel.Parallel``.

    Raises:
        InputError: another stage, or an optimiser that is not on the device.
    """

    model: Any
    """DeepSpeed's engine."""

    def __init__(self, net: MemoryTransformer, settings: TrainConfig, accelerator: Accelerator):
        self.net, self._is_main = net, accelerator.is_main_process
        values: dict[str, Any] = accelerator.state.deepspeed_plugin.deepspeed_config
        zero = values["zero_optimization"]
        if zero["stage"] not in (1, 2) or zero.get("offload_optimizer", {}).get("device", "none") != "none":
            raise InputError("cannot train with this DeepSpeed configuration: set zero_stage: 2 and no offloading")
        values |= {
            "train_micro_batch_size_per_gpu": settings.batch_size,
            "gradient_accumulation_steps": 1,  # the loop divides by it, and says when the last one comes
            "gradient_clipping": settings.grad_clip,
        }
        if settings.dtype == "bfloat16":  # the engine switches off any autocast but its own; gradients stay float32
            values["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        self.optimizer = make_optimizer(net, settings)
        self.model, _ = accelerator.prepare(net, self.optimizer)
        self._make_moments()

    def accumulating(self, more: bool) -> AbstractContextManager[None]:
        """See ``Parallel``."""
        self.model.set_gradient_accumulation_boundary(not more)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See ``Parallel``."""
        self.model.backward(loss)

    def step(self, max_norm: float) -> Tensor:
        """See ``Parallel``; the largest norm was told to the engine."""
        self.model.step()
        return torch.as_tensor(self.model.get_global_grad_norm())

    def state(self) -> TrainingState:
        """See ``Parallel``."""
        from deepspeed.utils import safe_get_full_optimizer_state

        [*parts] = self.optimizer.state.values()
        state: dict[str, Tensor] = {}
        for name, parameter in self.net.named_parameters():
            whole = {key: safe_get_full_optimizer_state(parameter, key).cpu() for key in _MOMENTS}
            if self._is_main:
                state |= {f"{name}/{key}": value for key, value in (whole | {"step": parts[0]["step"].clone()}).items()}
        return TrainingState(self.net.state_dict(), state) if self._is_main else TrainingState({}, {})

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """See ``Parallel``."""
        from deepspeed.utils import safe_set_full_optimizer_state

        for part in self.optimizer.state.values():
            part["step"].copy_(next(value for key, value in tensors.items() if key.endswith("/step")))
        for name, parameter in self.net.named_parameters():
            for key, value in state_of(name, tensors).items():
                if key in _MOMENTS:
                    safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)

    def close(self) -> None:
        """See ``Parallel``; the engine has no reducer."""

    def _make_moments(self) -> None:
        """Give every group its zeros now, as its first step would.

        DeepSpeed notes where a parameter's moments are after the first step of the first group, when others have none.
        """
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        engine = self.model.optimizer
        for parameters, part in zip(engine.bit16_groups, engine.single_partition_of_fp32_groups, strict=True):
            self.optimizer.state[part] = {
                "step": torch.zeros((), device=part.device),
                **{key: torch.zeros_like(part, requires_grad=False) for key in _MOMENTS},
            }
            lazy_init_hp_params_optimizer_state(parameters, part, self.optimizer.state)
