"""train.py under FSDP2 on CPU processes (gloo), for test_fsdp.py: as `accelerate launch` sets it up on GPUs.

accelerate turns FSDP on for accelerators only; the sharding itself, its gathers and its checkpoints run on a CPU too.
One process trains whole. Into the folder $RECORD, if there is one, each process writes what its student's linear
attention used, layer by layer:
  RANK.safetensors   gradients of A_log and dt_bias, as the optimiser first gets them, and their weights at the end
  types-RANK.json    types of parameters in the forward passes of updates and of rollouts
"""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

import train
from engine import update


class Sharded(Accelerator):
    def __init__(self, **settings):
        super().__init__(**settings)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="SHARDED_STATE_DICT"
        )
        if self.mixed_precision != "no":
            plugin.set_mixed_precision(self.mixed_precision)
        PartialState().distributed_type = self.state.distributed_type = DistributedType.FSDP
        self.state.fsdp_plugin = plugin


class FusedAdamW(torch.optim.AdamW):
    """On GPUs AdamW is fused, and takes no mix of shards and ordinary parameters."""

    def __init__(self, parameters, **settings):
        super().__init__(parameters, **(settings | {"fused": True}))


class Recorder:
    """What torch's hooks see of the student's linear attention, layer by layer."""

    def __init__(self):
        self.layers: list[Qwen3_5GatedDeltaNet] = []
        self.types: dict[str, set[str]] = defaultdict(set)
        self.gradients: dict[str, torch.Tensor] = {}
        self.weights: dict[str, torch.Tensor] = {}
        register_module_forward_pre_hook(self.before_forward)
        register_optimizer_step_pre_hook(self.before_step)
        register_optimizer_step_post_hook(self.after_step)

    def before_forward(self, module, _) -> None:
        if isinstance(module, Qwen3_5GatedDeltaNet) and module.A_log.requires_grad:  # the teacher is frozen
            if module not in self.layers:
                self.layers.append(module)
            phase = "update" if torch.is_grad_enabled() else "rollouts"
            for name in ("A_log", "dt_bias", "out_proj.weight"):
                self.types[f"{name} in {phase}"].add(str(module.get_parameter(name).dtype))

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return {f"{i} {x}": layer.get_parameter(x) for i, layer in enumerate(self.layers) for x in ("A_log", "dt_bias")}

    def before_step(self, *_) -> None:
        if not self.gradients:
            self.gradients = {f"gradient {name}": whole(x.grad) for name, x in self.parameters().items()}

    def after_step(self, *_) -> None:
        self.weights = {f"weight {name}": whole(x.detach()) for name, x in self.parameters().items()}

    def write(self, folder: Path) -> None:
        rank = os.environ.get("RANK", "0")
        folder.mkdir(exist_ok=True)
        save_file(self.gradients | self.weights, folder / f"{rank}.safetensors")
        types = {name: sorted(types) for name, types in self.types.items()}
        (folder / f"types-{rank}.json").write_text(json.dumps(types))


def whole(x: torch.Tensor) -> torch.Tensor:
    return (x.full_tensor() if isinstance(x, DTensor) else x).clone()


if __name__ == "__main__":
    if "RANK" in os.environ:
        update.Accelerator, torch.optim.AdamW = Sharded, FusedAdamW
    recorder = Recorder() if "RECORD" in os.environ else None
    train.main(sys.argv[1:])
    if recorder:
        recorder.write(Path(os.environ["RECORD"]))
