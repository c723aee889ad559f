"""DeepSpeed's ZeRO stages 2 and 3 as a ``Placement``. Imported only where the accelerate file asks for it.

Its engine makes the step; the optimiser (torch's AdamW), the clipping norm, the schedule and the checkpoints are ours.
Tried with DeepSpeed 0.19 and two processes on a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.runtime.distributed import rank, world_size
from harness.runtime.errors import Problem
from harness.training.placement import MakeOptimizer, Part, Read, fill, hollow_copy, set_rate, trainable

_MOMENTS = ("exp_avg", "exp_avg_sq")


def zero_problems() -> list[Problem]:
    """What the accelerate file asks of DeepSpeed that is not done here."""
    from importlib.util import find_spec

    if find_spec("deepspeed") is None:
        return [
            Problem("DeepSpeed is not installed", where="distributed_type", got="DEEPSPEED", allowed="FSDP, MULTI_GPU",
                    next="pip install 'harness-retrieval[deepspeed]', or take recipes/accelerate/fsdp2.yaml")
        ]  # fmt: skip
    wanted = {
        "zero_stage": ("ZERO_STAGE", ("2", "3"), "2"),
        "offload_optimizer_device": ("OFFLOAD_OPTIMIZER_DEVICE", ("none",), "none"),
        "offload_param_device": ("OFFLOAD_PARAM_DEVICE", ("none",), "none"),
        "zero3_init_flag": ("ZERO3_INIT", ("false",), "false"),
        "deepspeed_config_file": ("CONFIG_FILE", ("none",), "none"),
    }
    found = {key: os.environ.get(f"ACCELERATE_DEEPSPEED_{name}", usual) for key, (name, _, usual) in wanted.items()}
    return [
        Problem("this trainer does not do that", where=f"deepspeed_config.{key}", got=got,
                allowed=" or ".join(wanted[key][1]), next="take recipes/accelerate/deepspeed-zero3.yaml or fsdp2.yaml")
        for key, got in found.items()
        if got.lower() not in wanted[key][1]
    ]  # fmt: skip


def zero_stage() -> int:
    """The stage that the accelerate file names."""
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))


class Zero:
    """Moments and gradients (2), parameters too (3), are spread over processes; the main process saves them whole.

    The engine is made at the first step, when a checkpoint's weights are in the model. Gradients are reduced with
    every backward call: ZeRO has no way to wait for the last. After ``finish`` the parameters are whole, on the CPU of
    the main process; in the others they have no values.
    """

    def __init__(
        self, model: nn.Module, make_optimizer: MakeOptimizer, *, stage: int, max_norm: float, bf16: bool
    ) -> None:
        self.plain_model, self.make_optimizer, self.stage = model, make_optimizer, stage
        self.max_norm, self.bf16 = max_norm, bf16
        self.shapes = {name: tuple(parameter.shape) for name, parameter in trainable(model).items()}
        self._engine: Any = None
        self._saved_moments: dict[str, Tensor] = {}

    @property
    def model(self) -> Any:
        """The engine, which is to be called."""
        if self._engine is None:
            self._start()
        return self._engine

    def _start(self) -> None:
        import deepspeed

        self._hollow = hollow_copy(self.plain_model)
        self._everything = dict(self.plain_model.named_parameters())
        self._parameters = trainable(self.plain_model)
        config = {
            # Only told apart from each other by DeepSpeed's own arithmetic of batches: when a step ends, we say.
            "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "train_batch_size": world_size(),
            "gradient_clipping": self.max_norm,
            "zero_optimization": {"stage": self.stage},
            "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
            # Switches off autocast around it otherwise; no module's gradients are reduced in bf16.
            "torch_autocast": {"enabled": self.bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        }  # fmt: skip
        optimizer = self.make_optimizer(self.plain_model)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self.plain_model, optimizer=optimizer, config=config
        )
        if self._saved_moments:
            self._put_moments()

    def _flat(self) -> list[Tensor]:
        """What AdamW sees: this process's parts of all parameters, one after the other."""
        two = self.stage == 2
        return list(
            self._optimizer.single_partition_of_fp32_groups if two else self._optimizer.fp32_partitioned_groups_flat
        )

    def _link(self) -> None:
        """Let stage 2 find every parameter's moments: it looks for them once, when the first group has made a step."""
        if self.stage == 2:
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _put_moments(self) -> None:
        from deepspeed.utils import safe_get_local_fp32_param, safe_set_full_optimizer_state
        from deepspeed.utils import safe_set_local_optimizer_state as set_local

        steps = next(value for name, value in self._saved_moments.items() if name.startswith("step/"))
        for flat in self._flat():
            state = {"step": steps.clone().to(flat.device)} | {key: torch.zeros_like(flat) for key in _MOMENTS}
            self._optimizer.optimizer.state[flat] = state
        self._link()
        for name, parameter in self._parameters.items():
            for key in _MOMENTS:
                value = self._saved_moments[f"{key}/{name}"].to(parameter.device)
                if self.stage == 2:
                    safe_set_full_optimizer_state(parameter, value, key)
                    continue
                rows = safe_get_local_fp32_param(parameter).numel()  # the last process's are padded
                padded = torch.nn.functional.pad(value.flatten(), (0, rows * world_size() - value.numel()))
                set_local(parameter, padded[rows * rank() : rows * (rank() + 1)], key)
        self._saved_moments = {}

    def clear(self) -> None:
        self.model.optimizer.zero_grad()

    def backward(self, loss: Tensor, *, sync: bool) -> None:
        self.model.set_gradient_accumulation_boundary(sync)
        self.model.backward(loss, scale_wrt_gas=False)

    def update(self, rate: float, max_norm: float) -> float:
        assert max_norm == self.max_norm
        set_rate(self._optimizer, rate)
        self.model.step()
        return float(self.model.get_global_grad_norm())

    def _whole(self, key: str | None = None) -> dict[str, Part]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parts = {}
        for name, parameter in self._parameters.items():  # a collective each, so in every process
            value = safe_get_full_optimizer_state(parameter, key) if key else safe_get_full_fp32_param(parameter)
            if rank() == 0:
                parts[f"{key}/{name}" if key else name] = Part(value.cpu(), self.shapes[name])
        return parts

    def weights(self) -> dict[str, Part]:
        return self._whole()

    def moments(self) -> dict[str, Part]:
        self._link()
        parts = {name: part for key in _MOMENTS for name, part in self._whole(key).items()}
        if rank() == 0:
            steps = self._optimizer.optimizer.state[self._flat()[0]]["step"]
            parts |= {f"step/{name}": Part(torch.as_tensor(steps), ()) for name in self.shapes}
        return parts

    def set_weights(self, read: Read) -> None:
        self.finish()
        with torch.no_grad():
            for name, parameter in trainable(self.plain_model).items():
                parameter.copy_(read(name, slice(None)))

    def set_moments(self, shapes: Mapping[str, tuple[int, ...]], read: Read) -> None:
        assert self._engine is None
        self._saved_moments = {name: read(name, slice(None)) for name in shapes}

    def finish(self) -> None:
        """The engine is given up; the model takes the place of what it was before."""
        if self._engine is None:
            return
        values = {name: part.value for name, part in self._whole().items()}
        values |= {name: self._frozen(p) for name, p in self._everything.items() if name not in self.shapes}
        self._engine.destroy()
        self._engine = None
        fill(self.plain_model, self._hollow, values if rank() == 0 else {})

    def _frozen(self, parameter: nn.Parameter) -> Tensor:
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
            return parameter.detach().to("cpu", copy=True)
