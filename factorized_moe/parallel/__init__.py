"""Sharding: expert tensors cut over several devices along any label of their network, by `torch.distributed`.

`shard` cuts the parameters, `shards_of` says beforehand what that costs, `ShardExperts` is the same as a style of
torch's plans. `synchronise_gates` lets gates with batch statistics see the batches of all ranks.
"""

from factorized_moe.parallel.choosing import Choice
from factorized_moe.parallel.machine import Machine
from factorized_moe.parallel.placing import Layout
from factorized_moe.parallel.shard_report import ShardReport, describe_shards, shard_rows
from factorized_moe.parallel.sharded_tensor import ShardedExpertTensor
from factorized_moe.parallel.sharding import shard, shards_of, synchronise_gates
from factorized_moe.parallel.splitting import SplitPlan, Use, split_plan
from factorized_moe.parallel.style import ShardExperts

__all__ = [
    "Choice",
    "Layout",
    "Machine",
    "ShardExperts",
    "ShardReport",
    "ShardedExpertTensor",
    "SplitPlan",
    "Use",
    "describe_shards",
    "shard",
    "shard_rows",
    "shards_of",
    "split_plan",
    "synchronise_gates",
]
