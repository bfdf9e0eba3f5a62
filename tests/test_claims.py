"""The claims harness: paired intervals, verdicts, results that are added, and a stopped claim that goes on."""

import json
from pathlib import Path

import pytest
from scipy import stats

from ontarget.claims import find_claims, load_claim, pair_texts, paired_difference, run_claim, verdict, verdict_of_all

CLAIM = """
from pathlib import Path

NUMBER, NAME, TITLE, KIND = 7, "toy", "A toy", "direction"
STATEMENT, DATA, BUDGET = "The method is better.", "none", "equal"
ARMS, SEEDS, MEASURE = ("method", "baseline"), 3, "accuracy"
LOG = Path(__file__).with_name("calls.txt")


def run(seed, context):
    with LOG.open("a") as log:
        log.write(f"{seed}\\n")
    if seed == 2 and Path(__file__).with_name("stop").exists():
        raise KeyboardInterrupt
    return {"method": {"accuracy": 0.8 + 0.01 * seed}, "baseline": {"accuracy": 0.7}}
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONTARGET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "07_toy.py").write_text(CLAIM)
    return tmp_path / "07_toy.py"


def test_the_difference_is_paired_with_student_s_interval() -> None:
    found = paired_difference([0.8, 0.9, 0.7], [0.7, 0.7, 0.7])
    low, high = stats.ttest_rel([0.8, 0.9, 0.7], [0.7, 0.7, 0.7]).confidence_interval(0.95)
    assert found["mean"] == pytest.approx(0.1)
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize(
    ("kind", "difference", "expected"),
    [
        ("direction", {"mean": 0.1, "low": 0.02, "high": 0.2}, "holds"),
        ("direction", {"mean": 0.1, "low": -0.02, "high": 0.2}, "undecided"),
        ("direction", {"mean": -0.1, "low": -0.2, "high": -0.02}, "fails"),
        ("direction", {"mean": 0.1, "low": float("nan"), "high": float("nan")}, "undecided"),
        ("identity", {"mean": 1e-9, "low": -1.0, "high": 1.0}, "holds"),
        ("identity", {"mean": 1e-3, "low": 0.0, "high": 0.0}, "fails"),
    ],
)
def test_verdicts(kind: str, difference: dict[str, float], expected: str) -> None:
    assert verdict(kind, difference) == expected


def test_a_statement_about_several_pairs_holds_where_all_hold(toy: Path, tmp_path: Path) -> None:
    assert verdict_of_all(["holds", "undecided"]) == "undecided"
    assert verdict_of_all(["holds", "undecided", "fails"]) == "fails"
    toy.write_text(
        CLAIM.replace('("method", "baseline"), 3', '("method", "baseline", "best"), 3').replace(
            '"baseline": {"accuracy": 0.7}', '"baseline": {"accuracy": 0.7}, "best": {"accuracy": 0.9 + 0.01 * seed}'
        )
        + 'PAIRS = (("method", "baseline"), ("method", "best"))\n'
    )
    result = json.loads(run_claim(toy, output=tmp_path / "results").read_text())
    assert [pair["verdict"] for pair in result["pairs"]] == ["holds", "fails"]
    assert result["verdict"] == "fails"
    assert [text.split(" = ")[0] for text in pair_texts(result)] == ["method − baseline", "method − best"]
    older = {name: value for name, value in result.items() if name != "pairs"}
    assert pair_texts(older) == pair_texts(result)[:1]


def test_a_result_is_written_and_a_second_one_is_added(toy: Path, tmp_path: Path) -> None:
    first = run_claim(toy, output=tmp_path / "results")
    result = json.loads(first.read_text())
    assert result["verdict"] == "holds" and result["seeds"] == [0, 1, 2]
    assert result["difference"]["baseline"]["mean"] == pytest.approx(0.11)
    assert result["rows"][2]["method"]["accuracy"] == pytest.approx(0.82)
    before = first.read_bytes()
    second = run_claim(toy, output=tmp_path / "results")
    assert second != first and first.read_bytes() == before


def test_a_stopped_claim_goes_on_with_the_seed_that_was_cut_off(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    with pytest.raises(KeyboardInterrupt):
        run_claim(toy, output=tmp_path / "results")
    (tmp_path / "stop").unlink()
    run_claim(toy, output=tmp_path / "results")
    assert (tmp_path / "calls.txt").read_text().split() == ["0", "1", "2", "2"]
    # Another claim text is other work.
    toy.write_text(CLAIM + "\n# changed\n")
    run_claim(toy, output=tmp_path / "results")
    assert len((tmp_path / "calls.txt").read_text().split()) == 7


@pytest.mark.parametrize("number", sorted(find_claims()))
def test_every_claim_says_what_it_claims(number: str) -> None:
    path = find_claims()[number]
    claim = load_claim(path)
    assert path.name == f"{claim.NUMBER:02d}_{claim.NAME}.py"
    assert claim.KIND in ("identity", "direction", "size")
    assert len(claim.ARMS) >= 2 and claim.SEEDS >= 3
    assert all(isinstance(text, str) and text for text in (claim.TITLE, claim.STATEMENT, claim.DATA, claim.BUDGET))
    assert callable(claim.run)


def test_seeds_side_by_side_give_what_one_after_the_other_gives(toy: Path, tmp_path: Path) -> None:
    together = json.loads(run_claim(toy, output=tmp_path / "together", jobs=2).read_text())
    toy.write_text(CLAIM + "\n# again\n")
    alone = json.loads(run_claim(toy, output=tmp_path / "alone").read_text())
    assert together["rows"] == alone["rows"]
