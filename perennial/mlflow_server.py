"""The local stack's MLflow server in one process: `python -m perennial.mlflow_server`.

`mlflow server` imports MLflow three times, for the command, for uvicorn and for a runner of jobs nobody submits here:
14 s of processor time and 820 MB before it answers. The same application started directly takes 6 s and 280 MB.
"""

from __future__ import annotations

import argparse
import os


def main() -> None:
    """Make the tables where they are missing, then serve tracking, registry and UI until SIGTERM."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--backend-store-uri", required=True, help="SQLAlchemy URL of runs and models")
    parser.add_argument("--default-artifact-root", required=True, help="URI below which clients put artifacts")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5000)
    options = parser.parse_args()

    # MLflow looks for uvicorn among the imported modules to learn that it is a server.
    import uvicorn
    from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR

    os.environ[BACKEND_STORE_URI_ENV_VAR] = options.backend_store_uri
    os.environ[ARTIFACT_ROOT_ENV_VAR] = options.default_artifact_root

    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(options.backend_store_uri, default_artifact_root=options.default_artifact_root)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
