"""What every caller's messages go through on their way to the chat template."""

import json
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import FIXTURES
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer

from deltamem_mlx.text.datasets import load_conversations
from deltamem_mlx.text.files import read_messages
from deltamem_mlx.text.messages import check_messages, message_problems
from deltamem_mlx.text.rendering import merge_roles
from deltamem_mlx.text.spans import message_spans, running_spans
from deltamem_mlx.text.turns import as_messages, turn_of

WRITES_CALLS = """{%- for m in messages -%}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or [] %}{% set call = call.function or call -%}
<tool_call>{{ call.name }} {{ call.arguments | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}"""
# As Gemma's, Llama 2's and Mistral's templates.
DEMANDS_TURNS = """{%- set start = 1 if messages[0].role == 'system' else 0 -%}
{%- for m in messages[start:] -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate') }}{%- endif -%}
<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"""

ASKED = {"role": "user", "content": "Where?"}


def with_template(template: str) -> TokenizerWrapper:
    tokenizer = load_tokenizer(FIXTURES / "tokenizers" / "bpe")
    tokenizer.chat_template = template
    return tokenizer


def calling(arguments: object, *, nested: bool = True) -> dict[str, object]:
    call = {"name": "find", "arguments": arguments}
    calls = [{"id": "1", "type": "function", "function": call} if nested else call]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def rendered(messages: list, template: str = WRITES_CALLS) -> str:
    tokenizer = with_template(template)
    return tokenizer.decode(message_spans(tokenizer, messages).token_ids)


def user(*texts: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": text} for text in texts]


# --- calls of tools


@pytest.mark.parametrize("nested", [True, False], ids=["openai", "flat"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"city": "oslo"}', '{"city": "oslo"}'),
        ({"city": "oslo"}, '{"city": "oslo"}'),
        (' {"a": {"b": [1, "{}"]}} ', '{"a": {"b": [1, "{}"]}}'),
        ("{}", "{}"),
        ("", "{}"),
    ],
)
def test_arguments_reach_the_template_as_an_object(
    arguments: object, said: str, nested: bool
) -> None:
    message = calling(arguments, nested=nested)
    before = json.dumps(message)
    assert f"<tool_call>find {said}</tool_call>" in rendered([ASKED, message])
    assert json.dumps(message) == before, "the caller's messages stay as they are"


def test_a_reply_that_only_calls_tools_has_no_text_rather_than_none() -> None:
    assert "None" not in rendered([ASKED, calling("{}")])


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ([{"function": {"name": "f", "arguments": "{'a': 1}"}}], "tool_calls[0]: not valid JSON"),
        ([{"function": {"name": "f", "arguments": "7"}}], "tool_calls[0]: arguments: a number"),
        ([{"function": {"name": "f", "arguments": ["a"]}}], "tool_calls[0]: arguments: a list"),
        ([{"function": "f"}], "tool_calls[0]: function: text"),
        (["f"], "tool_calls[0]: text (expected an object)"),
        ("f", "tool_calls: text (expected a list)"),
    ],
)
def test_calls_that_cannot_be_written_are_named(calls: object, said: str) -> None:
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    with pytest.raises((TypeError, ValueError)) as caught:
        check_messages([ASKED, message])
    assert f"messages[1].{said}" in str(caught.value)


def test_every_file_of_messages_gives_the_template_the_same(tmp_path: Path) -> None:
    row = {"messages": [ASKED, calling('{"city": "oslo"}')]}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    told, trained = read_messages(path), load_conversations(path, valid_fraction=0).train[0]
    assert rendered(told) == rendered(trained.messages) == rendered(row["messages"])
    assert 'find {"city": "oslo"}' in rendered(told)


# --- half characters


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a \ud83d", "holds half a character (U+D83D) at character 3"),
        ("\ude00", "holds half a character (U+DE00) at character 1"),
        ("caf\udce9", "holds the byte 0xe9, which is not UTF-8, at character 4"),
    ],
)
def test_what_is_no_unicode_is_named_wherever_it_stands(text: str, said: str) -> None:
    places = {
        "messages[0].content": {"role": "user", "content": text},
        "messages[0].role": {"role": text, "content": "a"},
        "messages[0].tool_calls[0].function.arguments.city": calling({"city": text}),
        "messages[0].extra[1].a": {"role": "user", "content": "a", "extra": ["b", {"a": text}]},
    }
    for place, message in places.items():
        assert (place, said) in [(p.field, p.what) for p in message_problems([message])]
        with pytest.raises(ValueError, match="cannot be used"):
            as_messages([message])
    with pytest.raises(ValueError, match=r"half a character|byte"):
        as_messages(text)
    with pytest.raises(ValueError, match=r"half a character|byte"):
        message_spans(
            with_template(WRITES_CALLS + "{{ style }}"), [ASKED], template_kwargs={"style": text}
        )


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_half_a_character_in_a_file_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"role": "user", "content": "cut \\ud83d"}')
    whole = tmp_path / f"whole-{name}"
    whole.write_text('{"role": "user", "content": "whole \\ud83d\\ude00 \\\\ud83d"}')
    with pytest.raises(ValueError, match=rf"{name}(:1)?: not Unicode text: content holds half"):
        read_messages(tmp_path / name)
    assert read_messages(whole)[0]["content"] == "whole \U0001f600 \\ud83d"


def test_messages_nested_without_end_are_refused() -> None:
    value: object = "x"
    for _ in range(500):
        value = [value]
    with pytest.raises(ValueError, match="nested more than 100 levels deep"):
        check_messages([{"role": "user", "content": "a", "extra": value}])


# --- messages of one role that follow each other


def test_a_template_that_demands_turns_gets_them() -> None:
    messages = [*user("Anna lives in Oslo.", "Ben is a doctor."), calling(""), *user("Who?")]
    del messages[2]["tool_calls"]
    messages[2]["content"] = "Noted."
    with pytest.warns(UserWarning, match="they are merged") as caught:
        text = rendered(messages, DEMANDS_TURNS)
    assert len(caught) == 1
    assert "Anna lives in Oslo.\n\nBen is a doctor." in text
    assert text.count("user") == 2


def test_each_merged_message_keeps_the_tokens_that_it_adds() -> None:
    tokenizer = with_template(DEMANDS_TURNS)
    messages = user("Anna lives in Oslo.", "Ben is a doctor.", "Cleo plays the viola.")
    with pytest.warns(UserWarning, match="merged"):
        spans = message_spans(tokenizer, messages, sentences=True)
    assert spans.message_ids == sorted(spans.message_ids)
    for i, message in enumerate(messages):
        own = [t for t, m in zip(spans.token_ids, spans.message_ids, strict=True) if m == i]
        assert str(message["content"]).rstrip(".") in tokenizer.decode(own)


@pytest.fixture(scope="module")
def demanding() -> TokenizerWrapper:
    return with_template(DEMANDS_TURNS)


@given(texts=st.lists(st.text("ab .\n"), min_size=2, max_size=6), prompt=st.booleans())
@settings(max_examples=40)
def test_merged_messages_are_tokenized_as_if_each_were_the_last(
    demanding: TokenizerWrapper, texts: list[str], prompt: bool
) -> None:
    tokenizer = demanding
    messages = [*user(*texts), {"role": "assistant", "content": "a"}, *user(*texts)]
    with pytest.warns(UserWarning, match="merged"):
        found = list(running_spans(tokenizer, messages, add_generation_prompt=prompt))
    assert len(found) == len(messages) + prompt
    for i, (count, spans) in enumerate(found):
        text = tokenizer.apply_chat_template(
            merge_roles(messages[:count]),
            tokenize=False,
            add_generation_prompt=i == len(messages),
        )
        assert spans.token_ids == tokenizer.encode(text, add_special_tokens=False)


def test_many_merged_messages_are_not_tokenized_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = with_template(DEMANDS_TURNS)
    lengths = []
    encode = tokenizer._tokenizer.encode
    monkeypatch.setattr(
        tokenizer._tokenizer,
        "encode",
        lambda text, **more: lengths.append(len(text)) or encode(text, **more),
    )
    messages = user(*(f"Number {i} lives in Oslo." for i in range(60)))
    with pytest.warns(UserWarning, match="merged"):
        message_spans(tokenizer, messages)
    whole = sum(len(str(message["content"])) for message in messages)
    assert sum(lengths) < 8 * whole


def test_a_conversation_goes_on_with_a_message_of_the_same_role() -> None:
    tokenizer = with_template(DEMANDS_TURNS)
    seen, new = user("Anna lives in Oslo."), user("Where does Anna live?")
    with pytest.warns(UserWarning, match="merged"):
        turn = turn_of(tokenizer, seen, new, reply=True, sentences=False, template_kwargs={})
    assert "Where does Anna live?" in tokenizer.decode(turn.new.token_ids)
    assert "Oslo" not in tokenizer.decode(turn.new.token_ids)


def test_other_templates_get_messages_as_they_are() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = rendered(user("One.", "Two."))
        alternating = rendered([*user("One."), {"role": "assistant", "content": "Two."}])
    assert text.count("user") == 2 and "assistant" in alternating


def test_a_conversation_that_merging_does_not_mend_is_refused_as_before() -> None:
    messages = [{"role": "assistant", "content": "A."}, *user("B.", "C.")]
    with warnings.catch_warnings(), pytest.raises(ValueError, match="refuses this conversation"):
        warnings.simplefilter("error")
        rendered(messages, DEMANDS_TURNS)


MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.text()}
)


@given(messages=st.lists(MESSAGE, max_size=8))
def test_merging_loses_no_text_and_merges_no_results_of_tools(messages: list[dict]) -> None:
    merged = merge_roles(messages)
    pairs = pairwise(merged)
    assert all(a["role"] != b["role"] or a["role"] == "tool" for a, b in pairs)
    texts = "\n\n".join(str(m["content"]) for m in messages if m["content"])
    assert "\n\n".join(str(m["content"]) for m in merged if m["content"]) == texts
    assert merge_roles(merged) == merged
