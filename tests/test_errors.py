import pickle

import pytest

from ontarget.errors import DataError, MissingExtra, OnTargetError, nearest, require_extra


def test_message_has_its_four_parts_in_order() -> None:
    error = DataError("column 'txt' is missing", allowed="text, label", option="--input", next_step="use 'text'")
    assert str(error).splitlines() == [
        "column 'txt' is missing",
        "Allowed: text, label.",
        "Set by: --input.",
        "Next: use 'text'.",
    ]


def test_errors_survive_pickling_with_their_parts() -> None:
    error = pickle.loads(pickle.dumps(DataError("given", allowed="a", option="b", next_step="c")))
    assert (type(error), error.given, error.allowed, error.option, error.next_step) == (
        DataError,
        "given",
        "a",
        "b",
        "c",
    )


def test_at_most_six_exceptions_and_one_root() -> None:
    from ontarget import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) <= 6
    assert all(issubclass(kind, OnTargetError) for kind in kinds)


def test_missing_extra_names_the_command() -> None:
    require_extra("json", "anything", "This")
    with pytest.raises(MissingExtra, match=r"pip install 'ontarget\[nothing\]'"):
        require_extra("no_such_module_here", "nothing", "This feature")


@pytest.mark.parametrize(("name", "expected"), [("labl", "did you mean 'label'?"), ("zzzzzz", "")])
def test_nearest(name: str, expected: str) -> None:
    assert nearest(name, ["text", "label"]) == expected
