"""infra/docker: what the images hold, and that the service does its work with that alone."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import boto3
import httpx
import polars as pl
import pytest
from moto.server import ThreadedMotoServer
from postgres import postgres as postgres  # a fixture
from slim import Locked, compiled_mb, image_packages, sizes_mb

sys.path.append(str(Path(__file__).parents[1] / "features"))
from redis_server import RedisServer, free_port
from redis_server import redis_server as redis_server  # a fixture

from features.encoding import Encoder
from features.store import OnlineWriter
from perennial.settings import Settings
from pipelines.spec import add_pipelines_dir, load_pipeline
from rollout.controller import release
from rollout.ledger import Ledger, Model

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "infra" / "docker"
SERVICE_LOCK = DOCKER / "service.lock"
SERVICE_PRUNE = DOCKER / "service_prune.sh"
READY_WITHIN_S = 20
GOAL_MB = 300

pytestmark = pytest.mark.infra

PIPELINE = """
from pipelines.spec import Aggregate, EventField, EventSpec, Feature, FeatureView, LabelSpec, PipelineSpec, ScoredSpec

ASKED = EventSpec(
    topic="kiosks.asked.v1",
    fields=(
        EventField(name="order_id", type="string"),
        EventField(name="event_timestamp", type="timestamp"),
        EventField(name="kiosk", type="string"),
        EventField(name="price", type="float"),
        EventField(name="sold", type="bool"),
    ),
    event_timestamp="event_timestamp",
    event_id=("order_id",),
    partition_key="kiosk",
)
PIPELINE = PipelineSpec(
    name="kiosks",
    description="Will it be sold?",
    events=(ASKED,),
    scored=ScoredSpec(topic=ASKED.topic, key="order_id"),
    label=LabelSpec(topic=ASKED.topic, key="order_id", value=lambda f: f["sold"], horizon_s=3_600),
    views=(
        FeatureView(
            name="kiosk_prices", entity="kiosk", topic=ASKED.topic, key="kiosk",
            aggregates=(Aggregate(name="kiosk_price_mean_1h", field="price", function="mean", window_s=3_600),),
            ttl_s=86_400,
        ),
    ),
    request_features=lambda f: f.select("price"),
    features=(Feature(name="price", kind="numeric"), Feature(name="kiosk_price_mean_1h", kind="numeric")),
    contract=(),
    replay=lambda start, end: {},
)
"""


@dataclass(frozen=True)
class Service:
    """The running service, and where its log is."""

    url: str
    log: Path


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's packages, but for our own."""
    return image_packages(SERVICE_LOCK, SERVICE_PRUNE, tmp_path_factory.mktemp("image") / "packages")


def bundle_in_s3(endpoint: str) -> str:
    """A bundle whose score is sigmoid(price + 2 * kiosk_price_mean_1h)."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("MatMul", ["features", "weights"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["probability"]),
        helper.make_node("Squeeze", ["probability", "axis"], ["score"]),
    ]
    constants = [
        helper.make_tensor("weights", TensorProto.FLOAT, [2, 1], [1.0, 2.0]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
    ]
    taken = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 2])
    given = helper.make_tensor_value_info("score", TensorProto.FLOAT, [None])
    graph = helper.make_graph(nodes, "sum", [taken], [given], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()
    encoder = Encoder(load_pipeline("kiosks").features, {}).as_dict()
    described = {"version": 1, "model_sha256": sha256(model).hexdigest(), "encoder": encoder}
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    client.create_bucket(Bucket="models")
    for name, content in {"model.onnx": model, "bundle.json": json.dumps(described).encode()}.items():
        client.put_object(Bucket="models", Key=f"mlflow/7/bundle/{name}", Body=content)
    return "s3://models/mlflow/7/bundle"


@pytest.fixture
def service(s3: str, postgres: str, redis_server: RedisServer, packages: Path, tmp_path: Path) -> Iterator[Service]:
    """The service in an interpreter that has the packages of service.lock and no others; stores as in production."""
    (tmp_path / "pipelines" / "kiosks").mkdir(parents=True)
    (tmp_path / "pipelines" / "kiosks" / "__init__.py").touch()
    (tmp_path / "pipelines" / "kiosks" / "pipeline.py").write_text(PIPELINE)
    add_pipelines_dir(tmp_path / "pipelines")
    spec = load_pipeline("kiosks")
    now = datetime.now(UTC)
    rows = {"kiosk": ["north"], "event_timestamp": [now], "created_timestamp": [now], "kiosk_price_mean_1h": [0.75]}
    writer = OnlineWriter(spec, Settings(home=tmp_path / "writer", online_store_url=redis_server.url))
    writer.write(spec.views[0], pl.DataFrame(rows))
    ledger = Ledger(postgres)
    release(ledger, "kiosks", Model("7", bundle_in_s3(s3)), spec.rollout, "first", None, now)
    ledger.close()

    # The image has perennial installed; here it comes from the checkout, so only what says its version is missing.
    said = tmp_path / "said" / "perennial-0.1.0.dist-info"
    said.mkdir(parents=True)
    (said / "METADATA").write_text("Metadata-Version: 2.1\nName: perennial\nVersion: 0.1.0\n")
    home, port = tmp_path / "home", free_port()
    home.mkdir()
    environment = {
        "PATH": os.defpath,
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join(map(str, (packages, said.parent, ROOT))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PERENNIAL_HOME": str(home / "perennial"),
        "PERENNIAL_PIPELINES_DIR": str(tmp_path / "pipelines"),
        "PERENNIAL_DATABASE_URL": postgres,
        "PERENNIAL_ONLINE_STORE_URL": redis_server.url,
        "AWS_ENDPOINT_URL": s3,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    # -S: without the packages of the interpreter that runs the tests.
    command = [sys._base_executable, "-S", "-m", "serving", "--port", str(port)]  # type: ignore[attr-defined]
    log = tmp_path / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, cwd=home, stdout=output, stderr=output)
    try:
        yield Service(f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        assert process.wait(30) in (0, -15)


def answer(service: Service, path: str) -> httpx.Response | None:
    try:
        return httpx.get(f"{service.url}{path}", trust_env=False)
    except httpx.TransportError:
        return None


def test_the_service_answers_with_nothing_installed_but_its_lock(service: Service) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while (ready := answer(service, "/ready")) is None or ready.status_code != 200:
        assert time.monotonic() < until, f"{ready and ready.text}\n{service.log.read_text()[-3000:]}"
        time.sleep(0.2)
    asked = {"order_id": "o1", "event_timestamp": datetime.now(UTC).isoformat(), "kiosk": "north", "price": -1.0}
    told = httpx.post(f"{service.url}/v1/kiosks/score", json={"events": [{**asked, "sold": False}]}, trust_env=False)
    assert told.status_code == 200, told.text
    # -1 + 2 * 0.75: the mean is what Redis holds.
    score = pytest.approx(1 / (1 + math.exp(-0.5)), abs=1e-6)
    assert told.json()["predictions"] == [{"key": "o1", "score": score, "version": "7"}]
    assert "perennial_requests_total" in httpx.get(f"{service.url}/metrics", trust_env=False).text
    assert "Traceback" not in service.log.read_text()


# Each compiled module that is left (psycopg wants to be first), and a client of each service of AWS that a pod may ask.
LOADS = """
import importlib, pathlib, psycopg, sys
found = [p.relative_to(sys.argv[1]) for p in pathlib.Path(sys.argv[1]).rglob("*.so") if not p.name.startswith("lib")]
for path in found:
    importlib.import_module(".".join((*path.parent.parts, path.name.split(".")[0])))
import boto3
for name in ("s3", "secretsmanager", "sts"):
    boto3.client(name, region_name="us-east-1")
print(len(found))
"""


def test_what_was_stripped_and_pruned_still_loads(packages: Path) -> None:
    environment = {"PATH": os.defpath, "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys._base_executable, "-S", "-c", LOADS, str(packages)]  # type: ignore[attr-defined]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 30


def test_the_services_lock_names_the_versions_that_are_tested() -> None:
    everything, service = (Locked.read(lock).versions for lock in (ROOT / "requirements.lock", SERVICE_LOCK))
    assert len(service) > 30
    assert {name: version for name, version in service.items() if everything.get(name) != version} == {}
    # Nothing that trains, orchestrates or tests.
    assert not service.keys() & {
        "torch",
        "mlflow",
        "prefect",
        "lightgbm",
        "great-expectations",
        "evidently",
        "pytest",
        "mypy",
    }
    # Nor what Feast imports: its rows in Redis are read without it.
    assert not service.keys() & {"feast", "pyarrow", "pandas", "duckdb", "ibis-framework"}


def test_the_packages_of_the_service_take_no_more_than_the_goal(packages: Path, figures: Callable[[str], None]) -> None:
    sizes = sizes_mb(packages)
    total, largest = sum(sizes.values()), sorted(sizes, key=lambda name: -sizes[name])[:8]
    told = ", ".join(f"{name} {sizes[name]:.0f}" for name in largest)
    compiled = compiled_mb(packages)
    figures(f"packages of the scoring service: {total:.0f} MB, {compiled:.0f} of them compiled Python: {told}")
    assert compiled > 10  # without it a pod compiles all of it at each start
    assert total <= GOAL_MB


def dockerfiles() -> list[Path]:
    return sorted(DOCKER.glob("*.Dockerfile"))


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) in order; continued lines joined, comments left out."""
    text = re.sub(r"\\\n\s*", "", "\n".join(line for line in file.read_text().splitlines() if not line.startswith("#")))
    return [
        (line.split(maxsplit=1)[0].upper(), line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()
    ]


@pytest.mark.parametrize("file", dockerfiles(), ids=lambda file: file.stem)
def test_an_image_is_pinned_slim_and_nobodys_root(file: Path) -> None:
    steps = instructions(file)
    bases = [arguments.split()[0] for name, arguments in steps if name == "FROM"]
    assert len(bases) == 2  # one to build in, one to run
    assert all(re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base) for base in bases), bases
    assert len(set(bases)) == 1  # wheels of one Python do not run on another
    last = steps[max(at for at, (name, _) in enumerate(steps) if name == "FROM") :]
    # A number, so that Kubernetes can see that it is not root.
    assert [arguments for name, arguments in last if name == "USER"] == ["1000:1000"]
    assert last[-1][0] == "CMD"
    assert [name for name, _ in steps if name == "ADD"] == []
    assert not [
        arguments for name, arguments in last if name == "RUN" and re.search(r"\bpip\b|gcc|build-essential", arguments)
    ]


@pytest.mark.parametrize("file", dockerfiles(), ids=lambda file: file.stem)
def test_what_an_image_copies_is_in_the_repository_and_sent_to_the_builder(file: Path) -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source
        for name, arguments in instructions(file)
        if name == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    ]
    assert len(copied) > 5
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source in sent, f"{source} is not in .dockerignore's exceptions"


def test_the_worker_has_every_package_and_the_service_those_that_it_imports() -> None:
    listed = {file.parent.name for file in ROOT.glob("*/__init__.py")}

    def copied(name: str) -> set[str]:
        steps = instructions(DOCKER / f"{name}.Dockerfile")
        return {a.split()[0] for step, a in steps if step == "COPY" and a.split()[0] in listed}

    assert copied("worker") == listed - {"tests", "benchmarks"}
    assert copied("service") == listed - {"tests", "benchmarks", "training", "flows"}


def test_hadolint_finds_nothing(tools: Callable[[str, str], Path]) -> None:
    hadolint = tools("manifests", "hadolint")
    ran = subprocess.run([hadolint, *dockerfiles()], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")
