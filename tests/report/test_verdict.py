import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ontarget.report.console import print_ranking, print_report
from ontarget.report.verdict import p_words, standing, verdict
from ontarget.values import Ranked, Ranking, Score


def test_better_than_all(report: dict[str, Any]) -> None:
    found = verdict(report)
    assert (found.tone, found.headline) == ("better", "Better than all 2 baselines")
    assert found.sentences[0] == "It reaches accuracy 0.800 [0.700, 0.900] on 5 test rows."
    assert found.sentences[1] == (
        "The best baseline, TF-IDF + linear, reaches 0.600: the model is better, by +0.200 [+0.100, +0.300], p = 0.012."
    )
    assert found.sentences[2] == "One call takes 3 ms, within the limit of 5 ms."


@pytest.mark.parametrize(
    ("difference", "p_value", "tone", "words"),
    [
        (-0.3, 0.001, "worse", "Worse than TF-IDF + linear: prefer the baseline"),
        (0.1, 0.4, "alike", "Not shown to be better than TF-IDF + linear"),
        (0.0, 1.0, "alike", "not significantly different (p = 1)"),
    ],
)
def test_it_says_plainly_what_is_not_better(
    difference: float, p_value: float, tone: str, words: str, report: dict[str, Any]
) -> None:
    report["evidence"]["baselines"][0].update(difference=difference, p_value=p_value)
    found = verdict(report)
    assert found.tone == tone
    assert words in str(found)


def test_the_model_itself_is_no_rival(report: dict[str, Any]) -> None:
    report["evidence"]["baselines"][0].update(same_model=True, difference=0.0, p_value=1.0)
    found = verdict(report)
    assert (found.tone, found.headline) == ("better", "Better than the baseline")
    assert "is itself the baseline “TF-IDF + linear”" in str(found)
    assert standing(report["evidence"]["baselines"][0]) == "same"


def test_limits_are_named_one_by_one(report: dict[str, Any]) -> None:
    report["limits"] = {"latency_ms": 2.0, "size_mb": 100.0, "memory_mb": 50.0}
    report["bundle"]["memory_mb"] = 60.0
    text = str(verdict(report))
    assert "One call takes 3 ms, over the limit of 2 ms." in text
    assert "The loaded model takes 60 MiB of memory, over the limit of 50 MiB." in text
    assert "The bundle takes 90 MiB, within the limit of 100 MiB." in text


def test_test_rows_used_twice_are_a_warning(report: dict[str, Any]) -> None:
    assert verdict(report).warnings == ()
    report["evidence"]["touches"] *= 2
    assert "scored 2 times" in verdict(report).warnings[0]


def test_nothing_was_compared() -> None:
    assert verdict({}).tone == "unknown"
    assert verdict({}).sentences == ()


def test_p_values_in_words() -> None:
    assert (p_words(0.0001), p_words(0.05), p_words(None)) == ("p < 0.001", "p = 0.05", "")


def printed(function: Any, *arguments: Any) -> str:
    stream = io.StringIO()
    function(*arguments, console=Console(file=stream, width=100))
    return stream.getvalue()


def test_the_console_shows_the_same(report: dict[str, Any]) -> None:
    report["data"]["warnings"] = ["column [/bold] [red]x[/red]"]
    text = printed(print_report, report, Path("runs/reviews-1"))
    for words in ("finetune on zoo:minilm", "Better than all 2 baselines", "TF-IDF + linear", "+0.200", "< 0.001",
                  "column [/bold] [red]x[/red]", "runs/reviews-1/report.html", "30 s of 60 s"):  # fmt: skip
        assert words in text
    assert "report.html" in printed(print_report, {}, Path("x"))


def test_the_console_shows_a_ranking() -> None:
    scores = {"linear_probe": Score(0.8, 0.7, 0.9, 0.1), "tmi": Score(3.0, 2.0, 4.0)}
    ranking = Ranking("linear_probe", (Ranked("a", scores, 384, 2.0), Ranked("[b]", scores, 384, too_close=True)))
    text = printed(print_ranking, ranking)
    assert "0.800 [0.700, 0.900] ≈" in text
    assert "[b]" in text
    assert "too close to call" in text
    assert "[95%]" in text
