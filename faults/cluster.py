"""Ray on three nodes of this machine, of which any but the first may die."""

from __future__ import annotations

import random

from ray.cluster_utils import Cluster

CPUS = 1  # of each node


class Nodes:
    """A head node, and two others that can be killed."""

    def __init__(self) -> None:
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": CPUS, "include_dashboard": False}
        )
        self._others = [self._cluster.add_node(num_cpus=CPUS) for _ in range(2)]

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def kill_one(self, chance: random.Random) -> None:
        """Kill -9 a raylet with all that is on its node."""
        node = self._others.pop(chance.randrange(len(self._others)))
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()  # type: ignore[no-untyped-call]
