"""Every proof leaves a line in one table, which `make laws` prints: block, law, programs tried, largest error."""

import pytest

from posterity.inference.enumeration.check import Report


class Laws:
    """Asserts what a report found, and notes it for the table."""

    def __init__(self, record):
        self.record = record

    def holds(self, block: str, report: Report) -> None:
        assert report
        self.record("law", [block, report.law, 1, report.error, report.branches])

    def fails(self, mutant: str, report: Report) -> None:
        assert not report
        assert report.error > 1e-6  # a mistake, not rounding
        self.record("law", [f"MUTANT {mutant}", f"{report.law}: refuted", 1, report.error, report.branches])


@pytest.fixture
def laws(record_property):
    return Laws(record_property)


def pytest_terminal_summary(terminalreporter):
    rows: dict[tuple[str, str], list] = {}
    for report in terminalreporter.getreports("passed"):
        for block, law, programs, error, branches in (value for name, value in report.user_properties if name == "law"):
            row = rows.setdefault((block, law), [0, 0.0, 0])
            rows[block, law] = [row[0] + programs, max(row[1], error), row[2] + branches]
    if not rows:
        return
    width, wide = (max(len(key[i]) for key in rows) for i in (0, 1))
    terminalreporter.section("laws, by exact enumeration")
    terminalreporter.write_line(f"{'block':<{width}}  {'law':<{wide}}  programs  largest error    branches")
    for (block, law), (programs, error, branches) in sorted(rows.items(), key=lambda row: (row[0][0].startswith("MUTANT"), row[0])):
        terminalreporter.write_line(f"{block:<{width}}  {law:<{wide}}  {programs:>8}  {error:>13.1e}  {branches:>10,}")
