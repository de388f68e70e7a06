"""The stage that adds a validation result to the pipeline's Data Docs."""

from __future__ import annotations

from datetime import datetime

from flows.context import open_context
from flows.stage import stage
from validation.contract import ValidationResult
from validation.data_docs import write_data_docs


@stage()
def document(pipeline: str, judged: ValidationResult, what: str, as_of: datetime) -> str:
    """Add what was found to the pipeline's Data Docs, below PERENNIAL_HOME/data_docs; the address of its page.

    Args:
        pipeline: name of the pipeline.
        judged: what was found.
        what: was judged, a word such as `score`.
        as_of: the run's clock (UTC).

    Returns:
        A `file://` URI. The site's `index.html` is linked from it.
    """
    context = open_context(pipeline)
    folder = context.settings.root / "data_docs" / pipeline
    return write_data_docs(folder, context.spec, judged, what, as_of).as_uri()
