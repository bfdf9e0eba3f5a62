"""A real server on a real port, asked by a real client and by a real browser."""

import base64
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from ontarget.runtime import load_bundle
from ontarget.serve.server import ServerLimits, make_app

LIMITS = ServerLimits(max_body_mb=0.05, max_rows=4, timeout_s=5, max_characters=2000, max_pixels=10_000)


def running(bundle: Path, limits: ServerLimits) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = uvicorn.Config(make_app(load_bundle(bundle), limits), port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def text_server(text_bundle: Path) -> Iterator[str]:
    yield from running(text_bundle, LIMITS)


@pytest.fixture(scope="module")
def image_server(image_bundle: Path) -> Iterator[str]:
    yield from running(image_bundle, LIMITS)


def test_predict_gives_what_the_bundle_gives(text_server: str, text_bundle: Path) -> None:
    answer = httpx.post(f"{text_server}/predict", json={"rows": ["a good thing", "a bad thing"]})
    assert answer.status_code == 200
    assert answer.json()["predictions"] == load_bundle(text_bundle).predict(["a good thing", "a bad thing"])


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"rows": []}, 422, "at least 1"),
        ({"rows": ["a"] * 5}, 422, "at most 4"),
        ({"rows": [3]}, 422, "Row 0: a text is allowed"),
        ({"rows": [["a", "b"]]}, 422, "a text is allowed"),
        ({"rows": ["x" * 3000]}, 422, "at most 2000 characters"),
        ({"texts": ["a"]}, 422, "rows"),
        ({"rows": "a"}, 422, "list"),
    ],
)
def test_wrong_rows_are_answered_with_what_is_allowed(text_server: str, body: object, status: int, words: str) -> None:
    answer = httpx.post(f"{text_server}/predict", json=body)
    assert answer.status_code == status
    assert words in answer.text


def test_no_json_is_answered(text_server: str) -> None:
    answer = httpx.post(f"{text_server}/predict", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 422


def test_large_bodies_are_refused_by_length_and_while_they_arrive(text_server: str) -> None:
    answer = httpx.post(f"{text_server}/predict", json={"rows": ["x" * 100_000]})
    assert answer.status_code == 413
    assert "bytes are allowed" in answer.text

    def chunks() -> Iterator[bytes]:
        yield b'{"rows": ["'
        for _ in range(100):
            yield b"x" * 1024
        yield b'"]}'

    answer = httpx.post(f"{text_server}/predict", content=chunks(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_health_self_test_and_openapi(text_server: str) -> None:
    health = httpx.get(f"{text_server}/health").json()
    assert health["status"] == "ok"
    assert health["limits"]["max_rows"] == 4
    checks = httpx.get(f"{text_server}/self-test").json()["checks"]
    assert checks[1]["passed"]
    paths = httpx.get(f"{text_server}/openapi.json").json()["paths"]
    assert {"/predict", "/health", "/self-test"} <= set(paths)


def test_images_as_base64_and_as_upload(image_server: str, image_bundle: Path) -> None:
    content = (image_bundle / "selftest" / "00.png").read_bytes()
    encoded = base64.b64encode(content).decode()
    first = httpx.post(f"{image_server}/predict", json={"rows": [encoded, "data:image/png;base64," + encoded]})
    second = httpx.post(f"{image_server}/predict/images", files=[("files", ("a.png", content))])
    assert first.json()["predictions"][1] == second.json()["predictions"][0]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"no image", "this is no PNG"), (b"", "this is no PNG"), (None, "at most 10,000 pixels")],
)
def test_wrong_images_are_refused_before_they_are_decoded(image_server: str, content: bytes | None, words: str) -> None:
    if content is None:
        import io

        from PIL import Image

        buffer = io.BytesIO()
        Image.new("L", (5000, 5000)).save(buffer, "PNG")  # a small file of many pixels
        content = buffer.getvalue()
    answer = httpx.post(f"{image_server}/predict/images", files=[("files", ("a.png", content))])
    assert answer.status_code == 422
    assert words in answer.text
    answer = httpx.post(f"{image_server}/predict", json={"rows": [base64.b64encode(content).decode()]})
    assert answer.status_code == 422


def test_bad_base64_is_refused(image_server: str) -> None:
    answer = httpx.post(f"{image_server}/predict", json={"rows": ["!!!"]})
    assert answer.status_code == 422
    assert "base64" in answer.text


class Slow:
    """A bundle that takes its time: the real server around it is what is tested."""

    def __init__(self) -> None:
        self.info = {"modality": "text", "kind": "classification", "classes": ["a"], "input_columns": ["text"]}

    def predict(self, rows: list[str]) -> list[dict[str, str]]:
        time.sleep(1.0)
        return [{"label": "a"} for _ in rows]


def test_slow_answers_and_long_queues_end_in_503() -> None:
    import asyncio

    app = make_app(Slow(), ServerLimits(timeout_s=0.2, max_waiting=2))

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            answers = await asyncio.gather(*(http.post("/predict", json={"rows": ["a"]}) for _ in range(4)))
            return [answer.status_code for answer in answers]

    assert set(asyncio.run(ask())) == {503}


def test_many_clients_at_once_lose_nothing(text_server: str) -> None:
    failures: list[str] = []

    def client() -> None:
        with httpx.Client(base_url=text_server) as http:
            for number in range(25):
                answer = http.post("/predict", json={"rows": [f"good thing {number}"]})
                if answer.status_code != 200 or answer.json()["predictions"][0]["label"] != "good":
                    failures.append(answer.text)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.browser
def test_a_person_tries_the_model(browser, text_server: str) -> None:  # type: ignore[no-untyped-def]
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(text_server)
    assert browser.find_element(By.TAG_NAME, "h1").text == "things <i>"
    browser.find_element(By.ID, "field0").send_keys("a good thing")
    browser.find_element(By.ID, "go").click()
    WebDriverWait(browser, 10).until(lambda page: page.find_elements(By.CSS_SELECTOR, "#out .row"))
    rows = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "#out .row strong")]
    assert rows[0] == "good"
    assert "<script>alert(1)</script>" in rows
    field = browser.find_element(By.ID, "field0")
    field.clear()
    field.send_keys("x" * 2500)
    browser.find_element(By.ID, "go").click()
    WebDriverWait(browser, 10).until(lambda page: page.find_elements(By.CSS_SELECTOR, "#out .error"))
    assert "at most 2000 characters" in browser.find_element(By.CSS_SELECTOR, "#out .error").text
    expected = ("favicon", "422")  # no icon is served; the refused text is logged by the browser
    log = [entry["message"] for entry in browser.get_log("browser")]
    errors = [message for message in log if not any(word in message for word in expected)]
    assert errors == []


def test_the_example_of_the_api_page_is_valid_json(text_server: str) -> None:
    schema = httpx.get(f"{text_server}/openapi.json").json()["components"]["schemas"]["Rows"]
    answer = httpx.post(f"{text_server}/predict", json=schema["examples"][0])
    assert answer.status_code == 200
