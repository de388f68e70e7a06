from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipelines", "features", "validation", "training", "rollout", "serving", "flows", "perennial")
MOST_LINES = 500
HEAVY = (
    "pandas",
    "polars",
    "feast",
    "mlflow",
    "torch",
    "great_expectations",
    "evidently",
    "matplotlib",
    "prefect",
    "apprise",
    "lightgbm",
    "onnxruntime",
    "pyiceberg",
    "kafka",
    "sqlalchemy",
    "sklearn",
)


def modules(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it, by full name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importers(package: str, *of: str) -> list[str]:
    """Modules of some packages that import another."""
    return [
        str(path.relative_to(ROOT))
        for path in modules(*of)
        if any(name == package or name.startswith(f"{package}.") for name in imported(path))
    ]


def test_every_package_is_looked_at() -> None:
    for package in PACKAGES:
        assert list(modules(package)), package
    assert importers("prefect", "flows"), "flows are where Prefect is"


def test_what_answers_requests_does_not_know_how_models_are_made() -> None:
    assert importers("training", "serving", "rollout") == []


def test_prefect_is_known_to_flows_alone() -> None:
    assert importers("prefect", *(p for p in PACKAGES if p != "flows")) == []


def test_stages_do_not_know_the_flows_that_string_them_together() -> None:
    assert importers("flows", "pipelines", "features", "validation", "training", "rollout", "serving") == []


def test_a_pipeline_needs_nothing_but_its_contract() -> None:
    own = {"pipelines", "perennial.errors"}
    for path in modules("pipelines", "perennial/template"):
        ours = {name for name in imported(path) if name.split(".")[0] in PACKAGES}
        assert all(name.startswith(tuple(own)) for name in ours), path


@pytest.mark.parametrize(
    "library",
    ["great_expectations", "evidently", "feast", "kafka", "pyiceberg", "matplotlib", "mlflow", "redis", "apprise"],
)
def test_each_foreign_system_is_known_to_few_modules(library: str) -> None:
    known_to = {
        "great_expectations": ["validation/data_docs.py", "validation/suite.py"],
        "evidently": ["validation/report.py"],
        "apprise": ["validation/notify.py"],
        "feast": [
            "features/feast_lake.py",
            "features/feast_online.py",
            "features/feast_redis.py",
            "features/light_feast.py",
            "features/store.py",
        ],
        "redis": ["features/redis_client.py"],
        "kafka": ["features/broker.py", "features/consumer.py", "features/producer.py"],
        "pyiceberg": [
            "features/catalog.py",
            "features/compaction.py",
            "features/data_files.py",
            "features/lake.py",
            "features/maintenance.py",
            "features/newest.py",
            "features/places.py",
            "features/replacement.py",
            "features/snapshots.py",
            "features/transaction.py",
        ],
        "matplotlib": ["validation/plots.py"],
        "mlflow": ["perennial/mlflow_server.py"],
    }
    assert set(importers(library, *PACKAGES)) <= set(known_to[library])


def test_no_module_is_too_long_to_read() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in modules(*PACKAGES)}
    assert {name: lines for name, lines in lengths.items() if lines >= MOST_LINES} == {}


def test_the_command_line_answers_without_heavy_libraries() -> None:
    show = "import sys, perennial.cli; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in ran.stdout.split()}
    assert "typer" in loaded
    assert loaded & set(HEAVY) == set()


@pytest.mark.parametrize(
    ("module", "may_have"),
    [
        ("features.store", {"polars"}),
        ("features.lake", {"polars"}),
        ("features.consumer", {"polars"}),
        ("validation.contract", {"polars"}),
        ("training.fit", {"polars"}),
        ("pipelines.spec", {"polars"}),
    ],
)
def test_heavy_libraries_are_imported_where_they_are_used(module: str, may_have: set[str]) -> None:
    show = f"import sys, {module}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in ran.stdout.split()} & set(HEAVY) <= may_have
