"""The browser that pages are shown in, before it is trusted with anything."""

from pathlib import Path

import psutil
import pytest

from support.browser import browser

pytestmark = pytest.mark.needs("chromium")


async def test_a_browser_runs_a_page_and_leaves_no_process(tmp_path: Path) -> None:
    async with browser(tmp_path) as pages:
        script = "return {where: location.origin, sum: given.numbers.reduce((a, b) => a + b), it: navigator.userAgent}"
        told = await pages.show(script, numbers=[1, 2, 3])
        assert (told["where"], told["sum"]) == (pages.origin, 6)
        assert "Chrome/" in told["it"]
        with pytest.raises(AssertionError, match="threw: TypeError"):
            await pages.show("null.nothing")
    left = [each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or ())]
    assert not left


async def test_a_page_that_never_tells_is_given_up_in_the_browser(tmp_path: Path) -> None:
    async with browser(tmp_path) as pages:
        with pytest.raises(AssertionError, match="has not told"):
            await pages.show("await new Promise(() => {})", seconds=1)
