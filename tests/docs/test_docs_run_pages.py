"""Every line of code in the pages of docs that test_docs_run.py leaves is run: another process may take these."""

from __future__ import annotations

import pytest
from doc_steps import SECTIONS, Page
from local_hub import WARNING

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings(WARNING)
@pytest.mark.parametrize("section", [one for one in SECTIONS if one.page.name not in ("README.md", "cli.md")], ids=str)
def test_a_section_runs(section, request):
    Page(request).run(section)
