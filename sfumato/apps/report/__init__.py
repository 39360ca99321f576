"""`sfumato report`: what a run is and how well it went, in one HTML file that loads nothing.

gather.py, making.py and nearest.py find the facts (facts.py); charts.py, sections.py, figures.py and page.py draw."""

from __future__ import annotations

from sfumato.apps.report.write import Wanted, check_place, write_report

__all__ = ["Wanted", "check_place", "write_report"]
