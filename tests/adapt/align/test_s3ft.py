from collections.abc import Sequence

import numpy as np
import pytest

from ontarget.adapt.align.s3ft import Variant, s3ft
from ontarget.errors import DataError, SettingError

PROMPTS = ["own", "guided", "never", "copy"]
REFERENCES = [["gold 0"], ["gold 1", "other"], ["gold 2"], ["gold three it is"]]
SAID = {"own": "own answer", "guided": "wrong", "never": "wrong", "copy": "wrong"}


def run(variant: Variant = "s3ft") -> tuple[tuple[str, ...], tuple[str, ...], float, list[str]]:
    asked: list[str] = []

    def answer(prompts: Sequence[str]) -> list[str]:
        asked.extend(prompts)
        found = []
        for prompt in prompts:
            name = prompt.split("\n")[0]
            guided = "Reference answer" in prompt
            found.append(
                {"guided": "in my words", "copy": "Gold three, it is."}.get(name, "wrong 2") if guided else SAID[name]
            )
        return found

    def judge(rows: Sequence[int], answers: Sequence[str]) -> np.ndarray:
        return np.array(["wrong" not in text for text in answers])

    made = s3ft(PROMPTS, REFERENCES, answer, judge, variant=variant)
    return made.answers, made.origins, made.copied, asked


def test_each_row_takes_the_first_that_is_right() -> None:
    answers, origins, copied, asked = run()
    assert answers == ("own answer", "in my words", "gold 2", "Gold three, it is.")
    assert origins == ("own", "paraphrase", "gold", "paraphrase")
    assert copied == 0.5
    assert len(asked) == 4 + 3  # a row that is right is not asked again
    assert all("gold" not in prompt for prompt in asked[:4])
    assert "Reference answer: gold 1\n" in asked[4]


@pytest.mark.parametrize(
    ("variant", "origins", "asked"),
    [
        ("sft", ("gold",) * 4, 0),
        ("ssr", ("own", "gold", "gold", "gold"), 4),
        ("sdft", ("gold", "paraphrase", "gold", "paraphrase"), 4),
    ],
)
def test_variants(variant: Variant, origins: tuple[str, ...], asked: int) -> None:
    found = run(variant)
    assert found[1] == origins
    assert len(found[3]) == asked


def test_an_empty_answer_is_not_learnt() -> None:
    made = s3ft(["a"], [["gold"]], lambda prompts: [" "] * len(prompts), lambda rows, answers: np.ones(len(rows)))
    assert made.origins == ("gold",)
    assert made.shares() == {"own": 0.0, "paraphrase": 0.0, "gold": 1.0}


def test_wrong_input() -> None:
    def nothing(prompts: Sequence[str]) -> list[str]:
        return []

    with pytest.raises(SettingError, match="s3ft, sdft, ssr, sft"):
        s3ft(["a"], [["b"]], nothing, lambda rows, answers: np.ones(0), variant="s4ft")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="Row 1"):
        s3ft(["a", "b"], [["b"], []], nothing, lambda rows, answers: np.ones(0))
    with pytest.raises(DataError, match="1 prompts were asked"):
        s3ft(["a"], [["b"]], nothing, lambda rows, answers: np.ones(0))
    with pytest.raises(SettingError, match="guide"):
        s3ft(["a"], [["b"]], nothing, lambda rows, answers: np.ones(0), guide="{prompt}")
