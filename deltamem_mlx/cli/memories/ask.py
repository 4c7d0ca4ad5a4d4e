"""`memories ask`: which of them knows."""

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.load import has_memory, load_pair, refuse_without_memory
from deltamem_mlx.cli.frame.progress import answering
from deltamem_mlx.cli.frame.telling import tell_unknown_words
from deltamem_mlx.cli.options import memories as m
from deltamem_mlx.cli.options import shared as o

if TYPE_CHECKING:
    from deltamem_mlx.memory.shelf import ShelvedMemory

# In nats, of a whole answer. What was told has more; "noted." and the like, said to anything, less.
_KNOWS = math.log(5)
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--memory",
        metavar="NAME",
        help="Ask this one only, by its name or file. Repeatable.",
        show_default=False,
    ),
]
Question = Annotated[str, typer.Argument(metavar="QUESTION", help="In quotes.", show_default=False)]


@command(
    "deltamem-mlx memories ask 'where does anna live ?'",
    "deltamem-mlx memories ask 'where does anna live ?' --memory work",
    "deltamem-mlx memories ask 'Who is Maria?' --model MODEL --adapter ADAPTER",
    defaults=True,
)
def ask(
    question: Question,
    only: Only = None,  # not called memory: the default one is not to narrow it
    folder: m.Folder = None,
    model: o.Model = None,
    adapter: o.Adapter = None,
    system_prompt: o.SystemPrompt = None,
    max_tokens: o.MaxTokens = 48,
    trust_remote_code: o.TrustRemoteCode = False,
    json: o.Json = False,
) -> None:
    """Ask all memories one question, to see which of them knows.

    Nothing is written. Give a whole question: a bare name is none. An answer may be made up, from
    what is near to what a memory was told; ask in other words to see whether it stays. Those come
    first that make their answer likelier than it is without a memory. One that makes its answer
    less than five times as likely does not count as knowing: such answers are said to anything.
    Memories of other adapters are left out.
    """
    if not has_memory(model, adapter):
        refuse_without_memory({"memories ask": True})
    if not question.strip():
        raise typer.BadParameter("The question is empty.")
    from deltamem_mlx.adapters.loading import has_fingerprint
    from deltamem_mlx.memory.shelf import MemoryShelf

    shelf = MemoryShelf(folder)
    if not (found := [shelf.get(name) for name in only] if only else shelf.all()):
        if json:
            output.result_json([])
        else:
            output.result(f"There are no memories in {shelf.folder}.")
        return
    loaded, tokenizer = load_pair(model, adapter, trust_remote_code=trust_remote_code)
    tell_unknown_words(tokenizer, question)
    if len(question.split()) == 1:
        output.note(
            f"A whole question is answered best, such as 'Who is {question.strip(' ?')}?' or, with "
            f"the built-in pair, 'where does {question.strip(' ?')} live ?'"
        )
    mine = [one for one in found if one.file and has_fingerprint(loaded, one.file.adapter)]
    options = {"system_prompt": system_prompt, "max_tokens": max_tokens}
    answers = []
    with answering(len(mine)) as done:
        for one in mine:
            answers.append(_asked(loaded, tokenizer, one, question, options))
            done(1)
    answers.sort(key=lambda answer: -answer["gain"])
    if json:
        output.result_json(answers)
    else:
        _report(answers)
        if any(answer["gain"] >= _KNOWS for answer in answers):
            output.note(
                "What a memory holds of near things may be in an answer that was never told: to "
                "see whether it stays in other words, deltamem-mlx inspect NAME --probe QUESTION"
            )
    if others := len(found) - len(mine):
        output.note(f"Left out: {others} of other adapters, or that cannot be read.")


def _asked(
    model: Any, tokenizer: Any, memory: "ShelvedMemory", question: str, options: dict[str, Any]
) -> dict[str, Any]:
    import mlx.core as mx

    from deltamem_mlx.inspection.probe import probe

    states = memory.file.states if memory.file else {}
    state = {i: mx.array(one[:1]) for i, one in states.items()}
    (probed,) = probe(model, tokenizer, state, [question], **options)
    first, *others = probed.answers
    without = others[0].text if others else first.text
    return {"name": memory.name, "answer": first.text, "without": without, "gain": first.gain}


def _report(answers: list[dict[str, Any]]) -> None:
    from deltamem_mlx.evals.recall.correct import says_unknown
    from deltamem_mlx.views.columns import one_line

    said_otherwise = [
        answer
        for answer in answers
        if answer["answer"] != answer["without"] and not says_unknown(answer["answer"])
    ]
    knowing = [answer for answer in said_otherwise if answer["gain"] >= _KNOWS]
    likely_anyway = [answer for answer in said_otherwise if answer["gain"] < _KNOWS]
    width = max((len(answer["name"]) for answer in knowing), default=0)
    for answer in knowing:
        output.result(f"{answer['name']:<{width}}  {one_line(answer['answer'], 200)}")
    if likely_anyway:
        each = (f"{one['name']} ({one_line(one['answer'], 60)!r})" for one in likely_anyway)
        output.result(f"About as likely without a memory: {', '.join(each)}")
    rest = [answer["name"] for answer in answers if answer not in said_otherwise]
    if rest:
        said = one_line(answers[0]["without"], 200)
        output.result(f"No better than without a memory ({said!r}): {', '.join(rest)}")
