"""Languages by code and by name."""

from __future__ import annotations

from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from shared.families.languages import FURTHER_NAMES, LANGUAGE_NAMES, known_name, language_name


def test_whatever_whisper_takes_is_known() -> None:
    assert dict(LANGUAGE_NAMES) == LANGUAGES
    for name, code in TO_LANGUAGE_CODE.items():
        assert known_name(name) == known_name(code) == LANGUAGES[code]
        assert known_name(name.title()) == known_name(code.upper()) == LANGUAGES[code]


def test_all_of_iso_639_1_is_known() -> None:
    """It has 183 codes; three of Whisper's are not among them."""
    assert not FURTHER_NAMES.keys() & LANGUAGE_NAMES.keys()
    whisper_alone = {"haw", "jw", "yue"}
    assert len({*LANGUAGE_NAMES, *FURTHER_NAMES} - whisper_alone) == 183
    assert all(len(code) == 2 and name == name.lower() for code, name in FURTHER_NAMES.items())


def test_what_nobody_knows() -> None:
    for said in ("xx", "klingon", "en-US", "", " ", "english "):
        assert known_name(said) is None
        assert language_name(said) == said.lower()
