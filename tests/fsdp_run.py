"""train.py under FSDP2 on CPU processes (gloo), for test_fsdp.py: as `accelerate launch` sets it up on GPUs.

accelerate turns FSDP on for accelerators only; the sharding itself, its gathers and its checkpoints run on a CPU too.
"""

import sys

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

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


if __name__ == "__main__":
    update.Accelerator = Sharded
    train.main(sys.argv[1:])
