import json
from pathlib import Path
from typing import Any

import pytest

from ontarget.report.build import write_report

pytestmark = pytest.mark.browser


@pytest.fixture
def page(browser: Any, report: dict[str, Any], tmp_path: Path) -> Any:
    browser.set_window_size(1100, 1200)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what earlier pages said
    browser.get(write_report(report, tmp_path).as_uri())
    return browser


def find(browser: Any, selector: str) -> list[Any]:
    from selenium.webdriver.common.by import By

    return list(browser.find_elements(By.CSS_SELECTOR, selector))


def reveal(browser: Any, element: Any) -> Any:
    """The element, scrolled to the middle of the window, where the page's header does not cover it.

    Scrolling hides the tooltip, and its event comes with a later frame: two frames are waited for, or a move made
    at once would be undone by it on a busy machine.
    """
    browser.execute_async_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'});"
        "requestAnimationFrame(() => requestAnimationFrame(() => arguments[1]()))",
        element,
    )
    return element


def test_it_runs_nothing_and_loads_nothing_but_itself(page: Any) -> None:
    assert page.execute_script("return window.hacked") is None
    assert [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    # The browser's own start page may still be loading: what that asks for is not the report's.
    asked = [event["params"] for event in messages if event["method"] == "Network.requestWillBeSent"]
    sent = [request["request"]["url"] for request in asked if request["documentURL"] == page.current_url]
    assert {address.split(":")[0] for address in sent} <= {"file", "data"}
    assert sum(address.startswith("file") for address in sent) == 1


def test_the_content_policy_stops_foreign_scripts(page: Any) -> None:
    """Even markup that got in would not run."""
    page.execute_script(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked=1\">');"
        "const s = document.createElement('script'); s.textContent = 'window.hacked=2'; document.body.append(s);"
    )
    assert page.execute_async_script("setTimeout(() => arguments[0](window.hacked ?? null), 100)") is None


def test_sections_and_marks_are_visible(page: Any) -> None:
    assert find(page, "h1")[0].text == "Finetune on zoo:minilm"
    assert "Better than all 2 baselines" in find(page, ".badge")[0].text
    assert len(find(page, "main > section")) == 16
    for section in find(page, "main > section"):
        assert section.is_displayed()
        assert section.size["height"] > 60
    for mark in find(page, "#pareto .mark, #evidence .mark, #curves .mark, #timeline .span"):
        assert mark.size["width"] > 0
    # The deployed diamond is left of the limit, within the plot.
    box = "return document.querySelector('#pareto {}').getBoundingClientRect().{}"
    diamond, limit = (page.execute_script(box.format(kind, "x")) for kind in (".diamond", ".limit"))
    assert 0 < diamond < limit < 1100


def test_tables_sort_by_number_with_gaps_last(page: Any) -> None:
    cells = "#trials tbody td:nth-child(4)"
    button = reveal(page, find(page, "#trials th:nth-child(4) button")[0])
    button.click()
    rising = [cell.text for cell in find(page, cells)]
    button.click()
    falling = [cell.text for cell in find(page, cells)]
    assert rising[0] == "0.5000"
    assert falling[0] == "0.8300"
    assert rising[-1] == falling[-1] == ""
    assert rising[:-1] == falling[:-1][::-1]
    assert find(page, "#trials th:nth-child(4)")[0].get_attribute("aria-sort") == "descending"
    reveal(page, find(page, "#trials th:nth-child(2) button")[0]).click()
    methods = [cell.text.split("\n")[0] for cell in find(page, "#trials tbody td:nth-child(2)")]
    assert methods == sorted(methods)


def test_rows_are_filtered(page: Any) -> None:
    box = reveal(page, find(page, "#trials .filter input")[0])
    box.send_keys("linear_head")
    assert [row.is_displayed() for row in find(page, "#trials tbody tr")].count(True) == 1
    assert find(page, "#trials .filter span")[0].text == "1 of 11 rows"
    box.clear()
    box.send_keys(" ")
    assert all(row.is_displayed() for row in find(page, "#trials tbody tr"))


def test_tooltips_for_mouse_and_keyboard(page: Any) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.ui import WebDriverWait

    tip = find(page, "#tip")[0]

    def says(words: str) -> bool:  # a busy machine hands mouse moves and keys over late
        return bool(WebDriverWait(page, 10).until(lambda _: words in tip.text))

    assert not tip.is_displayed()
    ActionChains(page).move_to_element(reveal(page, find(page, "#pareto .diamond")[0])).perform()
    assert says("deployed: finetune on zoo:minilm as onnx-fp32")
    assert "3 ms a call" in tip.text
    ActionChains(page).send_keys(Keys.ESCAPE).perform()
    WebDriverWait(page, 10).until(lambda _: not tip.is_displayed())
    page.execute_script("arguments[0].focus()", find(page, "#pareto .mark.trial")[0])
    assert says("linear_head on zoo:minilm")
    ActionChains(page).move_to_element(reveal(page, find(page, ".matrix .w4")[0])).perform()
    assert says("taken for")
    assert "window.hacked" in tip.text
    assert page.execute_script("return window.hacked") is None


def test_dark_and_light_have_enough_contrast(page: Any) -> None:
    """WCAG AA, 4.5 to 1, of text on its background, for the pairs that the page uses."""
    pairs = [("ink", "card"), ("soft", "card"), ("soft", "page"), ("accent", "card"), ("wrong", "card"),
             ("accent", "accent-soft"), ("amber", "amber-soft"), ("wrong", "wrong-soft"), ("card", "accent"),
             ("soft", "accent-soft")]  # fmt: skip
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        colours = page.execute_script(
            "const s = getComputedStyle(document.documentElement);"
            "return Object.fromEntries(arguments[0].map(n => [n, s.getPropertyValue('--' + n).trim()]))",
            sorted({name for pair in pairs for name in pair}),
        )
        for text, back in pairs:
            assert contrast(colours[text], colours[back]) >= 4.5, (scheme, text, back)


def contrast(first: str, second: str) -> float:
    """WCAG 2.1 contrast ratio of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("width", [360, 768])
def test_narrow_screens_do_not_scroll_sideways(page: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        sizes = page.execute_script(
            "return [...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
        )
        assert min(size for size in sizes if size) > 9
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_without_scripts_everything_is_there(page: Any, report: dict[str, Any], tmp_path: Path) -> None:
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.get(write_report(report, tmp_path / "plain").as_uri())
        assert len(find(page, "#trials tbody tr")) == 11
        assert find(page, "#trials .filter") == []
        assert find(page, "#pareto circle title")
        assert not find(page, "#tip")[0].is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_it_prints(page: Any) -> None:
    import base64

    printed = page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not find(page, "header.bar")[0].is_displayed()
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
