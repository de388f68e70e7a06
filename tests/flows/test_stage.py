"""What becomes of a stage whose run is cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest

from flows.stage import stage


def test_a_stage_that_has_begun_runs_to_its_end_even_if_its_run_is_cancelled() -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    @stage()
    def work() -> None:
        begun.set()
        assert may_end.wait(20)
        ended.set()

    async def cancel_it() -> None:
        running = asyncio.create_task(work.fn())
        await asyncio.to_thread(begun.wait, 20)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not ended.is_set()
        may_end.set()

    # Leaving the loop waits for the stage, as the end of a run's process does.
    asyncio.run(cancel_it())
    assert ended.is_set()
