"""Text as it streams: equal to the whole decoded at once, and stop strings that lie across tokens."""

from __future__ import annotations

import pytest

from ontarget.serve.language_model.text_stream import TextStream


def decode(ids: list[int]) -> str:
    """One token a byte, as byte-level tokenizers do for rare characters."""
    return bytes(ids).decode("utf-8", errors="replace")


def stripped(ids: list[int]) -> str:
    """Tokenizers of SentencePiece drop a space at the start of a text."""
    return decode(ids).removeprefix(" ")


def streamed(text: str, stops: list[str], before: str = "", of: object = decode) -> tuple[list[str], bool]:
    stream = TextStream(of, stops, before.encode())  # type: ignore[arg-type]
    pieces = [stream.push(byte) for byte in text.encode()]
    return [*pieces, stream.finish()], stream.stopped


@pytest.mark.parametrize("text", ["plain text", "ä€𝄞 日本語", "tail �", "e\u0301 🇩🇪 👩‍👩‍👧"])
def test_pieces_are_the_text_and_no_half_characters(text: str) -> None:
    pieces, stopped = streamed(text, [])
    assert "".join(pieces) == text
    assert not stopped
    assert all("�" not in piece or "�" in text for piece in pieces)
    assert sum(map(bool, pieces)) >= len(text) - 2


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("SSTOP", ["STOP"], "S"),
        ("STOSTOP", ["STOP"], "STO"),
        ("STO", ["STOP"], "STO"),
        ("a\n\nb", ["\n\n", "b"], "a"),
        ("xaab", ["aab", "ab"], "x"),
        ("ä€ end", ["€"], "ä"),
        ("STOP", ["STOP"], ""),
    ],
)
def test_the_text_ends_before_the_first_stop(text: str, stops: list[str], expected: str) -> None:
    pieces, stopped = streamed(text, stops)
    assert "".join(pieces) == expected
    assert stopped == (expected != text)


def test_what_cannot_be_a_stop_is_not_held_back() -> None:
    pieces, _ = streamed("abSTx", ["STOP"])
    assert pieces == ["a", "b", "", "", "STx", ""]


def test_a_leading_space_is_kept_by_the_context_of_the_prompt() -> None:
    pieces, _ = streamed(" world and more words", [], "Hello", stripped)
    assert "".join(pieces) == " world and more words"


def test_bytes_that_are_no_text_come_out_too() -> None:
    stream = TextStream(decode)
    text = "".join(stream.push(0xFF) for _ in range(20)) + stream.finish()
    assert text == "�" * 20


def test_nothing_comes_after_a_stop() -> None:
    stream = TextStream(decode, ["b"])
    assert [stream.push(byte) for byte in b"abc"] == ["a", "", ""]
    assert stream.finish() == ""
