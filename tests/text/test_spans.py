"""Conversations become tokens, message ids and sentence ids as in the recorded reference data."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer
from tokenizers.normalizers import Prepend

from deltamem_mlx.text.spans import Spans, message_spans, running_spans, sentence_chunks

FIXTURES = Path(__file__).parents[1] / "fixtures"
CONVERSATIONS = json.loads((FIXTURES / "spans" / "spans.json").read_text())
SESSIONS = json.loads((FIXTURES / "spans" / "sessions.json").read_text())
CHUNKS = json.loads((FIXTURES / "spans" / "sentence_chunks.json").read_text())

Messages = list[dict[str, str]]

# Every reply but the last loses its reasoning, as in the templates of hybrid reasoning models.
STRIPS_REASONING = """{%- for m in messages -%}
<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last
%}<think>{{ 'hm ' * 30 }}</think>{% endif %}{{ m.content }}<|im_end|>{{ '\n' }}{%- endfor -%}"""
# The system prompt stands in the last user message, as in Mistral's early templates.
MOVES_SYSTEM = """{%- set system = messages[0].content -%}{%- for m in messages[1:] -%}
{%- if m.role == 'user' -%}<|im_start|>{% if loop.index0 >= (messages|length - 1) // 2 * 2 - 1
%}{{ system }}\n{% endif %}{{ m.content }}<|im_end|>
{%- else -%}{{ m.content }}<|im_end|>{{ '\n' }}{%- endif -%}{%- endfor -%}"""
COUNTS_AHEAD = "{{ messages|length }} messages{% for m in messages %} {{ m.content }}{% endfor %}"
ENDS_ONCE = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}<|im_end|>"
NEEDS_USER = """{%- if messages|selectattr('role', 'equalto', 'user')|list|length == 0 -%}
{{ raise_exception('no user message') }}{%- endif -%}
{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ '\n' }}
{%- endfor -%}"""
JOINS_CONTENTS = "{% for m in messages %}{{ m.content }}{% endfor %}"
NO_MARKS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, TokenizerWrapper]:
    return {name: load_tokenizer(FIXTURES / "tokenizers" / name) for name in ("bpe", "char96")}


@pytest.fixture(scope="module")
def bpe(tokenizers: dict[str, TokenizerWrapper]) -> TokenizerWrapper:
    return tokenizers["bpe"]


def with_template(template: str) -> TokenizerWrapper:
    tokenizer = load_tokenizer(FIXTURES / "tokenizers" / "bpe")
    tokenizer.chat_template = template
    return tokenizer


def conversation(*contents: str, system: str | None = None) -> Messages:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system is not None else turns


def texts_of(tokenizer: TokenizerWrapper, spans: Spans) -> dict[int, str]:
    """Message id to the text of its tokens."""
    found: dict[int, list[int]] = {}
    for token, message in zip(spans.token_ids, spans.message_ids, strict=True):
        found.setdefault(message, []).append(token)
    return {message: tokenizer.decode(tokens) for message, tokens in found.items()}


@pytest.mark.parametrize("prompt", [False, True], ids=["closed", "generation-prompt"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_reference_conversations(
    tokenizers: dict[str, TokenizerWrapper], name: str, prompt: bool
) -> None:
    case = CONVERSATIONS[name]
    expected = case[f"session_spans_generation_prompt_{str(prompt).lower()}"]
    spans = message_spans(
        tokenizers[case["tokenizer"]],
        case["messages"],
        add_generation_prompt=prompt,
        sentences=True,
    )
    assert spans.token_ids == expected["input_ids"]
    assert spans.message_ids == expected["message_ids"]
    assert spans.sentence_ids == expected["sentence_ids"]


def test_plain_transformers_tokenizer_gives_the_same(bpe: TokenizerWrapper) -> None:
    case = CONVERSATIONS["bpe/long_multi_turn"]
    plain = message_spans(bpe._tokenizer, case["messages"], add_generation_prompt=True)
    assert plain == message_spans(bpe, case["messages"], add_generation_prompt=True)
    assert plain.sentence_ids is None, "sentence ids only where they are asked for"


@pytest.mark.parametrize("case", CHUNKS, ids=lambda case: repr(case["text"]))
def test_reference_sentences(case: dict) -> None:
    assert sentence_chunks(case["text"]) == case["token_chunks"]


@pytest.mark.parametrize("mark", list("\"')]\u201d\u2019"))
def test_a_closing_mark_opens_the_next_sentence(mark: str) -> None:
    assert sentence_chunks(f"a.{mark} b") == ["a.", f"{mark} b"]


@given(st.text(alphabet=st.sampled_from(list("ab.!?;:\n\t \"')]”’。é"))) | st.text())
def test_sentences_together_are_the_text(text: str) -> None:
    chunks = sentence_chunks(text)
    assert "".join(chunks) == text
    assert all(chunks) or chunks == [""]


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant"]),
            "content": st.text(alphabet=st.sampled_from(list("ab .!\nuser<|im_end|>é"))),
        }
    ),
    min_size=1,
    max_size=6,
)


@given(messages=MESSAGES, prompt=st.booleans(), per_cent=st.integers(0, 100))
def test_spans_cover_the_rendered_conversation(
    bpe: TokenizerWrapper, messages: Messages, prompt: bool, per_cent: int
) -> None:
    spans = message_spans(bpe, messages, add_generation_prompt=prompt, sentences=True)
    rendered = bpe.apply_chat_template(messages, add_generation_prompt=prompt)
    assert spans.token_ids == rendered
    assert len(spans.message_ids) == len(spans.sentence_ids) == len(rendered)
    for ids in (spans.message_ids, spans.sentence_ids):
        active = [i for i in ids if i >= 0]
        assert all(a <= b <= a + 1 for a, b in pairwise(active)), "ids ascend without gaps"
        assert active[:1] in ([], [0])
    spoken = [message for message in messages if message["role"] != "system"]
    assert set(spans.message_ids) - {-1} == set(range(len(spoken)))
    pairs = zip(spans.message_ids, spans.sentence_ids, strict=True)
    assert all(message >= 0 for message, sentence in pairs if sentence >= 0)

    start = per_cent * len(rendered) // 100
    assert spans.tail(start) == Spans(*(ids[start:] for ids in spans))


@given(messages=MESSAGES)
def test_spans_of_the_start_are_the_start_of_the_spans(
    bpe: TokenizerWrapper, messages: Messages
) -> None:
    whole = message_spans(bpe, messages, sentences=True)
    for count, spans in running_spans(bpe, messages, sentences=True):
        assert spans == message_spans(bpe, messages[:count], sentences=True)
        assert all(part == full[: len(part)] for part, full in zip(spans, whole, strict=True))


@pytest.mark.parametrize("name", SESSIONS)
def test_reference_sessions(tokenizers: dict[str, TokenizerWrapper], name: str) -> None:
    session, tokenizer = SESSIONS[name], tokenizers["char96"]
    sentences = name == "ssw_sentence_mean"
    messages, processed = list(session["opening_messages"]), []

    def check(step: dict, messages: Messages, start: int, prompt: bool = False) -> Spans:
        spans = message_spans(
            tokenizer, messages, add_generation_prompt=prompt, sentences=sentences
        )
        assert spans.token_ids[start:] == step["input_ids"]
        assert spans.message_ids[start:] == step["message_ids"]
        assert spans.tail(start).sentence_ids == (step["sentence_ids"] if sentences else None)
        return spans

    for turn in session["turns"]:
        prompt, *decoded, suffix = session["steps"][turn["first_step"] :][: turn["steps"]]
        messages.append({"role": "user", "content": turn["user"]})
        spans = check(prompt, messages, len(processed), prompt=True)
        spoken = sum(message["role"] != "system" for message in messages)
        processed = list(spans.token_ids)
        for step in decoded:
            assert step["message_ids"] == [spoken]
            assert step["sentence_ids"] == [1 + max(spans.sentence_ids or [-1])]
            processed += step["input_ids"]
        messages.append({"role": "assistant", "content": turn["generated_text"]})
        processed = check(suffix, messages, len(processed)).token_ids

    if messages != session["final_messages"]:
        assert check(session["steps"][-1], session["final_messages"], 0).token_ids != processed


def test_settings_reach_the_template() -> None:
    tokenizer = with_template(ENDS_ONCE + "{{ style }}")
    messages = conversation("Hi.")
    plain = message_spans(tokenizer, messages)
    styled = message_spans(tokenizer, messages, template_kwargs={"style": " brief"})
    assert tokenizer.decode(styled.token_ids) == tokenizer.decode(plain.token_ids) + " brief"


@pytest.mark.parametrize("template", [NO_MARKS, JOINS_CONTENTS], ids=["no-marks", "joined"])
def test_tokens_that_reach_over_a_boundary_are_those_of_the_whole(template: str) -> None:
    tokenizer = with_template(template)
    messages = conversation("One.", "th", "e end.")
    spans = message_spans(tokenizer, messages, sentences=True)
    assert spans.token_ids == tokenizer.apply_chat_template(messages)
    assert "One." in texts_of(tokenizer, spans)[0]
    assert texts_of(tokenizer, spans)[2].endswith("e end." + "\n" * (template == NO_MARKS))


def test_a_space_put_before_every_text_is_not_put_before_every_message() -> None:
    tokenizer = with_template(JOINS_CONTENTS)
    tokenizer._tokenizer.backend_tokenizer.normalizer = Prepend("-")
    messages = conversation("One.", "Two.", "Three.")
    rendered = tokenizer.apply_chat_template(messages)
    assert tokenizer.decode(rendered) == "-One.Two.Three."
    assert message_spans(tokenizer, messages).token_ids == rendered


def test_reasoning_that_a_template_drops_leaves_the_reply_its_own() -> None:
    tokenizer = with_template(STRIPS_REASONING)
    messages = conversation("What is it?", "It is tea.", "And now?", "Rice.")
    spans = message_spans(tokenizer, messages, sentences=True)
    assert spans.token_ids == tokenizer.apply_chat_template(messages)
    texts = texts_of(tokenizer, spans)
    assert texts[1] == "<|im_start|>assistant\nIt is tea.<|im_end|>\n"
    assert texts[2] == "<|im_start|>user\nAnd now?<|im_end|>\n"
    written = [i for i, m in zip(spans.sentence_ids, spans.message_ids, strict=True) if m == 1]
    assert max(written) == 1, "the reply keeps its sentence"


def test_system_prompt_that_moves_leaves_the_others_their_own() -> None:
    tokenizer = with_template(MOVES_SYSTEM)
    messages = conversation("I like tea.", "Noted.", "And rice.", system="Be terse.")
    spans = message_spans(tokenizer, messages)
    assert spans.token_ids == tokenizer.apply_chat_template(messages)
    texts = texts_of(tokenizer, spans)
    assert texts[0] == "<|im_start|>I like tea.<|im_end|>"
    assert texts[1] == "Noted.<|im_end|>\n"
    assert texts[2] == "<|im_start|>Be terse.\nAnd rice.<|im_end|>"


def test_an_end_only_the_last_message_has_belongs_to_the_last() -> None:
    tokenizer = with_template(ENDS_ONCE)
    messages = conversation("Tea.", "Rice.")
    spans = message_spans(tokenizer, messages)
    assert spans.token_ids == tokenizer.apply_chat_template(messages)
    assert texts_of(tokenizer, spans) == {0: "<|im_start|>Tea.", 1: "<|im_start|>Rice.<|im_end|>"}


def test_a_system_message_that_cannot_stand_alone_joins_the_next() -> None:
    tokenizer = with_template(NEEDS_USER)
    messages = conversation("Tea.", "Rice.", system="Be terse.")
    spans = message_spans(tokenizer, messages)
    assert spans.token_ids == tokenizer.apply_chat_template(messages)
    assert spans.message_ids[0] == 0
    assert texts_of(tokenizer, spans)[1] == "<|im_start|>assistant\nRice.<|im_end|>\n"


def test_template_that_rewrites_is_refused() -> None:
    messages = conversation("A question of some length, here.", "An answer.", "More.")
    with pytest.raises(ValueError, match=r"rewrites earlier messages when messages\[1\]"):
        message_spans(with_template(COUNTS_AHEAD), messages)


def test_conversation_that_the_template_refuses_is_refused() -> None:
    messages = [{"role": role, "content": "Hi."} for role in ("system", "assistant")]
    with pytest.raises(ValueError, match=r"no user message.*roles: system, assistant"):
        message_spans(with_template(NEEDS_USER), messages)


def test_tokenizer_without_a_template_is_refused() -> None:
    tokenizer = load_tokenizer(FIXTURES / "tokenizers" / "bpe")._tokenizer
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        message_spans(tokenizer, conversation("Hi."))


def test_everything_wrong_with_messages_is_listed(bpe: TokenizerWrapper) -> None:
    with pytest.raises(TypeError) as caught:
        message_spans(bpe, [{"role": "user", "content": ["Hi"]}, "Hi", {"content": None}])
    said = str(caught.value)
    assert "messages[0].content: a list (expected text)" in said
    assert "messages[1]: text (expected an object)" in said
    assert "messages[2].role: missing" in said
    assert "messages[2].content: null" in said


@pytest.mark.parametrize(
    ("messages", "error", "what"),
    [([], ValueError, "empty"), ("Hi.", TypeError, "text"), (None, TypeError, "null")],
)
def test_what_is_no_conversation_is_refused(
    bpe: TokenizerWrapper, messages: object, error: type[Exception], what: str
) -> None:
    with pytest.raises(error, match=what):
        message_spans(bpe, messages)


def test_a_reply_that_only_calls_tools_needs_no_content() -> None:
    tokenizer = with_template("{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}")
    messages = [*conversation("Hi."), {"role": "assistant", "content": None, "tool_calls": [{}]}]
    assert set(message_spans(tokenizer, messages, sentences=True).message_ids) == {0, 1}
