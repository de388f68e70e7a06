"""The stage that adds a validation result to the pipeline's Data Docs, and shows it to people elsewhere."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import get_run_logger

from flows.context import champion, open_context
from flows.report import put_into_mlflow
from flows.stage import stage
from validation.contract import ValidationResult
from validation.data_docs import by_itself, write_data_docs


@stage()
def document(pipeline: str, judged: ValidationResult, what: str, as_of: datetime) -> str:
    """Add what was found to the pipeline's Data Docs below PERENNIAL_HOME/data_docs, and its page to MLflow.

    In MLflow it is among the artifacts of the champion's monitoring run, below `data_docs`, as the drift reports are.

    Args:
        pipeline: name of the pipeline.
        judged: what was found.
        what: was judged, a word such as `score`.
        as_of: the run's clock (UTC).

    Returns:
        The page's address in MLflow. Where it is not there, which is logged: a `file://` URI, good on this machine only.
    """
    context = open_context(pipeline)
    settings = context.settings
    page = write_data_docs(settings.root / "data_docs" / pipeline, context.spec, judged, what, as_of)
    model = champion(context)
    if model is None:
        get_run_logger().warning(
            "The page of Data Docs is on this machine only: %s has no champion, and so no monitoring run in MLflow.",
            pipeline,
        )
        return page.as_uri()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / what  # its permissions are copied, and those of a temporary folder shut MLflow out
        folder.mkdir()
        (folder / page.name).write_text(by_itself(page.read_text(encoding="utf-8")), encoding="utf-8")
        place = f"data_docs/{what}/{page.parent.name}"
        shared = put_into_mlflow(settings.mlflow_tracking_uri, pipeline, model.version, folder, place)
    if shared.link is None:
        get_run_logger().warning("The page of Data Docs is on this machine only, not in MLflow: %s", shared.why_not)
        return page.as_uri()
    return f"{shared.link}/{page.name}"
