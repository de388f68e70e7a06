from __future__ import annotations

from pathlib import Path

import pytest

from perennial.scaffold import init_pipeline
from pipelines.spec import PipelineSpec, add_pipelines_dir, load_pipeline


@pytest.fixture
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> PipelineSpec:
    """A new pipeline of this test's own, in the folder `pipelines`: its topics are nobody else's."""
    name = f"new_{abs(hash(request.node.nodeid)) % 10**8}"
    init_pipeline(name, tmp_path / "pipelines")
    add_pipelines_dir(tmp_path / "pipelines")
    return load_pipeline(name)
