"""One cluster for all of these tests. Of them only the jobs of the chosen ones are submitted, and all at once."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, hindrance


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = hindrance()
    if reason is not None:
        pytest.skip(reason)
    found = Cluster(tmp_path_factory.mktemp("c"))
    try:
        found.start()
    except (AssertionError, OSError, subprocess.SubprocessError) as error:
        with contextlib.suppress(AssertionError):
            found.stop()
        pytest.skip(f"SLURM does not start here: {error}")
    yield found
    found.stop()


@pytest.fixture(scope="session")
def chosen(request: pytest.FixtureRequest) -> set[str]:
    """Names of the tests that will run, which are those of their jobs."""
    return {item.name.removeprefix("test_") for item in request.session.items}


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster) -> Path:
    job = cluster.train("undisturbed")
    assert job.end() == "COMPLETED", job.output
    assert "2 nodes, 2 ranks, first start" in job.output
    assert "runs/undisturbed begins anew" in job.output
    return job.run
