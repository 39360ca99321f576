"""The real-data pack: where it is, and how many tests went without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pack() -> Path:
    return Path(os.environ.get("SFUMATO_DATA") or Path(__file__).parent.parent.parent / "shared" / "data")


@pytest.fixture
def data_pack(request: pytest.FixtureRequest) -> Path:
    """The folder of real data; the test is skipped, and counted, when it is not there."""
    folder = pack()
    if not folder.is_dir():
        if os.environ.get("SFUMATO_REQUIRE_DATA"):
            pytest.fail("the data pack is required here (SFUMATO_REQUIRE_DATA) and was not found")
        pytest.skip("the data pack is not there: set SFUMATO_DATA")
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    without = [r for r in terminalreporter.stats.get("skipped", []) if "data pack" in str(r.longrepr)]
    terminalreporter.write_line(f"data tests without the data pack: {len(without)}")
