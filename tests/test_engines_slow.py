"""A real sweep on a cluster of two nodes, one of which is killed in the middle."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from tests.test_craft import pictures, tables
from uturn.sweep import Plan, run
from uturn.sweep.engines import load_engine

pytestmark = pytest.mark.slow


def test_market_on_two_nodes_of_which_one_dies(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'uturn[ray]'")
    from ray.cluster_utils import Cluster

    plan = Plan(
        victim=f"osnet_x0_25:weights={shared_data / 'osnet_x0_25_market1501.pth'}",
        data=f"market1501:{shared_data / 'market1501'}",
        attacks=("odfa",),
        eps=(8,),
        queries=40,
        batch_size=5,
    )
    torch.set_num_threads(1)
    node = {"num_cpus": 1, "object_store_memory": 300 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    second = cluster.add_node(num_cpus=1, object_store_memory=300 * 2**20)

    def kill() -> None:
        while len(list((tmp_path / "ray" / "parts").rglob("0*.json"))) < 6:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        run(plan, tmp_path / "ray", engine=load_engine(f"ray:{cluster.address},threads=1"))
        killer.join()
    finally:
        cluster.shutdown()
    assert "is done again" in capsys.readouterr().err
    run(plan, tmp_path / "alone", progress=False)
    assert tables(tmp_path / "ray") == tables(tmp_path / "alone")
    assert pictures(tmp_path / "ray") == pictures(tmp_path / "alone")
