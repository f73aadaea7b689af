"""A Ray cluster of three nodes on this machine. All but the head node can be killed."""

from __future__ import annotations

import random

from ray.cluster_utils import Cluster

CPUS = 1  # per node


class Nodes:
    """A head node and two worker nodes that can be killed."""

    def __init__(self) -> None:
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": CPUS, "include_dashboard": False}
        )
        self._workers = [self._cluster.add_node(num_cpus=CPUS) for _ in range(2)]

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def kill_one(self, rng: random.Random) -> None:
        """Kill the raylet of a random worker node with SIGKILL, together with all processes of the node."""
        node = self._workers.pop(rng.randrange(len(self._workers)))
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()  # type: ignore[no-untyped-call]
