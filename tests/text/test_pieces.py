"""Which part of a text each token stands for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_mlx.text.pieces import valued, without_text

TEXT = st.text(st.sampled_from("aB \n\tß漢"), max_size=8)


def test_white_space_that_tokens_lose_stands_with_what_is_before_it() -> None:
    pieces = ["<s>", "user", "anna", "lives", "</s>"]
    found = valued([" anna  lives\n"], pieces, [0, 1, 2, 3, 4])
    assert found == [[(" anna  ", 2.0), ("lives\n", 3.0)]]


def test_the_text_is_meant_and_not_what_the_template_says_alike() -> None:
    pieces = without_text(["user", ":", "user", "end", "assistant", ":", "end"], {0, 1, 4, 5, 6})
    assert valued(["user end"], pieces, range(7)) == [[("user ", 2.0), ("end", 3.0)]]


def test_tokens_that_end_within_a_character_count_for_it() -> None:
    assert valued(["a漢"], ["a", "", "", "漢"], [1, 9, 3, 2]) == [[("a", 1.0), ("漢", 9.0)]]


@pytest.mark.parametrize("text", ["other", "   ", "annaa"])
def test_a_text_that_no_tokens_say_has_no_value(text: str) -> None:
    assert valued([text], ["anna"], [1]) == [[(text, None)]]


def test_an_empty_text_has_no_parts() -> None:
    assert valued(["", "a"], ["a"], [1]) == [[], [("a", 1.0)]]


def test_case_is_not_compared() -> None:
    assert valued(["Anna İ"], ["anna", "İ"], [1, 2]) == [[("Anna ", 1.0), ("İ", 2.0)]]


def test_where_a_word_is_unknown_the_others_are_found() -> None:
    pieces = ["user", "user", "likes", "\0", ".", "\0", "carl", "likes", "\0", "."]
    found = valued(["user likes tea .", "carl likes zebras."], pieces, range(10))
    assert found[0] == [("user ", 1.0), ("likes ", 2.0), ("tea ", None), (".", 4.0)]
    assert found[1] == [("carl ", 6.0), ("likes ", 7.0), ("zebras", None), (".", 9.0)]


@settings(max_examples=40)
@given(st.lists(TEXT, max_size=3), st.data())
def test_parts_are_the_text_however_it_was_cut(texts: list[str], data: st.DataObject) -> None:
    pieces: list[str] = []
    for text in texts:
        cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=5)))
        pieces += [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)] + ["\0"]
    found = valued(texts, pieces, [float(i) for i in range(len(pieces))])
    assert ["".join(part for part, _ in parts) for parts in found] == texts
    for text, parts in zip(texts, found, strict=True):
        values = [value for _, value in parts]
        assert (None in values) == bool(text and not text.strip())
        assert values == sorted(values, key=lambda value: value or 0)
