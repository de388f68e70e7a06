"""Writes service.lock, the packages of the scoring service's image: `python infra/docker/service_lock.py`.

Run it where requirements.lock is installed, after a change of it. It loads the service with everything a request touches,
looks which installed packages were imported, and names these with the versions of requirements.lock.
"""

from __future__ import annotations

import importlib
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = Path(__file__).with_name("service.lock")
# What the service imports before or during its first request, with PostgreSQL, Redis and S3.
IMPORTS = (
    *("serving.__main__", "serving.predictor", "features.store", "features.redis_rows", "perennial.s3"),
    *("onnxruntime", "psycopg", "psycopg_binary", "boto3", "hiredis", "httptools", "uvloop"),
)
# Imported where they happen to be installed, and missed by nobody; tests/infra/test_images.py serves requests without them.
NOT_NEEDED = {
    *("cffi", "cloudpickle", "cryptography", "multipart", "mypy-extensions", "opentelemetry-sdk"),
    *(
        "opentelemetry-semantic-conventions",
        "psutil",
        "pydantic-extra-types",
        "pyopenssl",
        "pysocks",
        "rich",
        "setuptools",
    ),
    *("sniffio", "ujson", "watchfiles"),
}


def main() -> None:
    """Write the lock."""
    sys.path.insert(0, str(ROOT))
    for name in IMPORTS:
        importlib.import_module(name)
    importlib.import_module("pipelines.spec").load_pipeline("flights")
    used = {name for name, files in _files().items() if files & _imported()} - NOT_NEEDED - {"perennial"}
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if _name(line) in used]
    if missing := used - {_name(line) for line in lines}:
        raise SystemExit(f"requirements.lock has no {sorted(missing)}; install what it names, and nothing else")
    head = "# Made by infra/docker/service_lock.py from requirements.lock; installed by pip with --no-deps.\n"
    LOCK.write_text(head + "\n".join(lines) + "\n")


def _imported() -> frozenset[str]:
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return frozenset(str(Path(file).resolve()) for file in files if file)


def _files() -> dict[str, frozenset[str]]:
    return {_normal(d.metadata["Name"]): _of(d) for d in distributions()}


def _of(distribution: Distribution) -> frozenset[str]:
    return frozenset(str(Path(str(file.locate())).resolve()) for file in distribution.files or ())


def _name(line: str) -> str:
    return _normal(re.split(r"[=; ]", line, maxsplit=1)[0])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
