"""Which tokens a turn adds, for templates that append and for those that do not quite."""

import pytest
from conftest import FIXTURES
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer

from deltamem_mlx.text.spans import Spans
from deltamem_mlx.text.turns import (
    Turn,
    as_messages,
    end_of_turn,
    newest_turns,
    spans_with,
    turn_of,
)

# The reasoning of a reply goes when the next message comes.
DROPS_REASONING = """{%- for m in messages -%}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}
{%- else %}{{ m.content }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# A system message alone is refused.
NEEDS_USER = (
    "{% if not messages|selectattr('role', 'equalto', 'user')|list %}"
    "{{ raise_exception('no user') }}{% endif %}" + DROPS_REASONING
)
TRIMS = DROPS_REASONING.replace("{{ m.content }}", "{{ m.content | trim }}")

SYSTEM = {"role": "system", "content": "Be brief. Very."}
TALK = [
    {"role": "user", "content": "Hello. My name is Al!"},
    {"role": "assistant", "content": "<think>A greeting, so greet.</think>Hi. Al?"},
    {"role": "user", "content": "Who am I?\n\nSay it."},
    {"role": "assistant", "content": "Al."},
]
NEW = [{"role": "user", "content": "And now? Well."}]


@pytest.fixture
def bpe() -> TokenizerWrapper:
    return load_tokenizer(FIXTURES / "tokenizers" / "bpe")


def turn(tokenizer: TokenizerWrapper, seen: list, new: list = NEW, **options: object):
    given = {"reply": True, "sentences": True, "template_kwargs": {}} | options
    return turn_of(tokenizer, seen, new, **given)


@pytest.mark.parametrize("template", [None, DROPS_REASONING, NEEDS_USER])
@pytest.mark.parametrize("count", range(6))
def test_known_spans_change_nothing(
    count: int, template: str | None, bpe: TokenizerWrapper
) -> None:
    if template is not None:
        bpe.chat_template = template
    seen = [SYSTEM, *TALK][:count]
    plain = turn(bpe, seen)
    if not seen or (template == NEEDS_USER and count == 1):
        return
    known = spans_with(bpe, [], seen, sentences=True, template_kwargs={})
    assert turn(bpe, seen, known=known) == plain
    longer = spans_with(bpe, seen, NEW, known=known, sentences=True, template_kwargs={})
    assert longer == spans_with(bpe, [], [*seen, *NEW], sentences=True, template_kwargs={})


@pytest.mark.parametrize("template", [None, DROPS_REASONING])
@pytest.mark.parametrize("seen", [[], [SYSTEM], [SYSTEM, *TALK[:2]], TALK], ids=len)
def test_a_turn_is_the_new_messages(
    seen: list, template: str | None, bpe: TokenizerWrapper
) -> None:
    if template is not None:
        bpe.chat_template = template
    found = turn(bpe, seen)
    text = bpe.decode(found.new.token_ids)
    assert text == "<|im_start|>user\nAnd now? Well.<|im_end|>\n<|im_start|>assistant\n"
    assert bpe.decode(found.spans.token_ids).endswith(text)
    spoken = sum(message["role"] != "system" for message in seen)
    assert set(found.new.message_ids) == {spoken, -1}
    assert found.seen.token_ids + found.new.token_ids == found.spans.token_ids


def test_a_system_message_that_cannot_stand_alone_belongs_to_the_first(
    bpe: TokenizerWrapper,
) -> None:
    bpe.chat_template = NEEDS_USER
    assert turn(bpe, [SYSTEM]).start == 0


def test_a_second_system_message_is_new(bpe: TokenizerWrapper) -> None:
    found = turn(bpe, TALK[:2], [SYSTEM, *NEW])
    assert bpe.decode(found.new.token_ids).startswith("<|im_start|>system\nBe brief.")


@pytest.mark.parametrize(
    ("template", "generated"), [(None, "Al."), (TRIMS, "Al."), (TRIMS, " Al. ")], ids=str
)
def test_the_end_of_a_turn(template: str | None, generated: str, bpe: TokenizerWrapper) -> None:
    if template is not None:
        bpe.chat_template = template
    seen, said = TALK[:2], {"role": "assistant", "content": generated}
    found = turn(bpe, seen)
    spans = spans_with(bpe, seen, [*NEW, said], sentences=True, template_kwargs={})
    reply = bpe.encode(generated, add_special_tokens=False)
    end = end_of_turn(found, spans, reply, bpe.eos_token_ids)
    assert bpe.decode(end.token_ids) == "<|im_end|>\n"
    assert set(end.message_ids) == {3}
    assert set(end.sentence_ids) == {-1}
    # The same words in other tokens.
    pieces = [t for c in generated for t in bpe.encode(c, add_special_tokens=False)]
    assert end_of_turn(found, spans, pieces, bpe.eos_token_ids) == end


def test_the_end_of_a_turn_without_an_end_token() -> None:
    spans = Spans([5, 8, 9], [0, 0, 1])
    assert end_of_turn(Turn(Spans([5, 6], [0, -1]), 0), spans, [1], {2}) == Spans([], [])


def test_newest_turns(bpe: TokenizerWrapper) -> None:
    seen = [SYSTEM, *TALK]
    spans = spans_with(bpe, [], seen, sentences=False, template_kwargs={})
    sizes = [spans.message_ids.count(i) for i in range(-1, 4)]
    two = sizes[0] + sizes[3] + sizes[4]
    for budget, kept in [
        (10**6, seen),
        (sum(sizes), seen),
        (sum(sizes) - 1, [SYSTEM, *TALK[2:]]),
        (two, [SYSTEM, *TALK[2:]]),
        (two - 1, [SYSTEM]),
        (0, [SYSTEM]),
        (-5, [SYSTEM]),
    ]:
        assert newest_turns(seen, spans, budget) == kept, budget


def test_as_messages() -> None:
    message = {"role": "tool", "content": "7"}
    assert as_messages("Hi.") == [{"role": "user", "content": "Hi."}]
    assert as_messages(message) == as_messages([message]) == [message]
    for wrong in (7, None, [7]):
        with pytest.raises(TypeError):
            as_messages(wrong)
