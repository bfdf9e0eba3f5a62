"""Descriptions of Debian's software, from the lists that apt fetches, in several languages, joined by their digest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ontarget.data import packages
from ontarget.errors import DataError

Described = dict[str, tuple[str, str]]


def fetched_descriptions(folder: Path, languages: list[str]) -> dict[str, Described]:
    """Language -> what `described` gives. Raises DataError: no descriptions in a language."""
    options = packages.debian_lists(folder, languages)
    listed = packages.debian_output("apt-cache", options, "dumpavail")
    paths = packages.debian_output(
        "apt-get", options, "indextargets", "--format", "$(FILENAME)", "Created-By: Translations"
    )
    texts = [packages.debian_list_text(path) for path in paths.split()]
    found = {language: described(listed, texts, language) for language in languages}
    for language, rows in found.items():
        if not rows:
            raise DataError(f"Debian has no descriptions in language '{language}'", option="language")
    return found


def described(listed: str, descriptions: Iterable[str], language: str) -> Described:
    """Digest of the English text -> (description, section), joined by it; the first of several packages counts.

    listed: Debian's list of packages. descriptions: its lists of descriptions in ``language``.
    """
    section_of: dict[str, str] = {}
    for fields in _stanzas(listed):
        if "Section" in fields and "Description-md5" in fields:
            section_of.setdefault(fields["Description-md5"], fields["Section"].rsplit("/", 1)[-1])
    rows: Described = {}
    for text in descriptions:
        for fields in _stanzas(text):
            digest, description = fields.get("Description-md5", ""), fields.get(f"Description-{language}")
            if description and digest in section_of:
                rows.setdefault(digest, (description, section_of[digest]))
    return rows


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """Paragraphs of "Field: value" lines, continued by lines that begin with a blank; " ." is an empty line."""
    for paragraph in text.split("\n\n"):
        fields: dict[str, list[str]] = {}
        name = ""
        for line in paragraph.splitlines():
            if line.startswith(" "):
                fields[name].append(line[1:].removeprefix(".") if line == " ." else line[1:])
            elif line:
                name, _, value = line.partition(":")
                fields[name] = [value.strip()]
        if fields:
            yield {name: "\n".join(lines).strip() for name, lines in fields.items()}


def translations(
    english: Mapping[str, tuple[str, str]], other: Mapping[str, tuple[str, str]]
) -> list[tuple[str, str, str]]:
    """(English text, translation, section) of each digest that both have. A text or a translation that occurs again is
    left out, so that rows can be split without a description and its translation on both sides."""
    rows, texts, seen = [], set[str](), set[str]()
    for digest, (translation, section) in other.items():
        text = english.get(digest, ("", ""))[0]
        if text and text not in texts and translation not in seen:
            rows.append((text, translation, section))
            texts.add(text)
            seen.add(translation)
    return rows
