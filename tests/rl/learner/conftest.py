"""A local Ray cluster for a file's tests, one at a time on this machine."""

import fcntl
import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for this file. Where files run side by side, the next one waits for its end: two clusters would share two processors."""
    pytest.importorskip("ray")
    # Late: machines with a GPU have no Ray.
    from samepath.rl.learner.ray_cluster import running_cluster
    from samepath.rl.recipe.cluster import RaySettings

    folder = tmp_path_factory.getbasetemp()
    with (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder).joinpath("cluster").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        with running_cluster(RaySettings(object_store_bytes=100 << 20)):
            yield
