"""`deltamem-mlx inspect`: what an adapter or a memory holds, and what a text does to a memory."""

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.held import Pair, states_of, words_held, words_of_its_own
from deltamem_mlx.cli.frame.load import has_memory, load_pair, refuse_without_memory
from deltamem_mlx.cli.frame.progress import answering, reading
from deltamem_mlx.cli.frame.session import ChatTemplateConfig, named_memory, template_kwargs
from deltamem_mlx.cli.options import inspect as i
from deltamem_mlx.cli.options import shared as o
from deltamem_mlx.cli.options.memories import or_default
from deltamem_mlx.files.places import shown_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from deltamem_mlx.inspection.memory_contents import MemoryContents
    from deltamem_mlx.text.messages import Message

TEXTS = (".txt", ".md", ".json", ".jsonl")


@command(
    "deltamem-mlx inspect adapters/qwen3-4b",
    "deltamem-mlx inspect anna.safetensors --plot anna.png",
    "deltamem-mlx inspect monday.safetensors friday.safetensors",
    "deltamem-mlx inspect anna.safetensors --model MODEL --adapter ADAPTER "
    "--probe 'What am I allergic to?' --answer walnuts",
    "deltamem-mlx inspect me --told notes.txt --plot me.png",
    "deltamem-mlx inspect --trace talk.jsonl --model MODEL --adapter ADAPTER --plot talk.png",
    defaults=True,
)
def inspect(
    target: i.Target = None,
    other: i.Other = None,
    probe: i.Probe = None,
    phrasing: i.Phrasing = None,
    rephrase: i.Rephrase = True,
    answer: i.Answers = None,
    told: i.Told = None,
    trace: i.Trace = None,
    by: i.ByTurnOrToken = None,
    numbers: i.Numbers = False,
    plot: i.Plot = None,
    conversation: i.Conversation = 0,
    model: o.Model = None,
    adapter: o.Adapter = None,
    system_prompt: o.SystemPrompt = None,
    chat_template_config: ChatTemplateConfig = None,
    max_tokens: o.MaxTokens = 48,
    max_kv_size: o.MaxKvSize = None,
    trust_remote_code: o.TrustRemoteCode = False,
    json: o.Json = False,
) -> None:
    """Look into an adapter or a memory.

    An adapter: its settings, tensors, corrections and gates. A memory: what each layer holds. Two
    memories: how far apart they are. All of it in words, and with --numbers in figures.

    With --probe, a memory is asked a question in several phrasings: what it answers, what the
    model would answer without it, and how much more likely the memory makes each answer.

    With --told, a text is read again: which of its words the memory holds, or has let go of.

    With --trace, a text runs through the model: how strongly it is written, how far it moves the
    memory, and how soon what came before is overwritten. It begins with the memory file, if one is
    given, else with an empty memory; the file stays as it is.

    --probe, --told and --trace take --model and --adapter; without both, the built-in demo pair.
    """
    names = [name for name in (target, other) if name is not None]
    targets = [_by_name(name) for name in names or ([] if trace else [or_default(None)])]
    i.check_use(targets, probe, told, trace, {"--phrasing": phrasing, "--answer": answer}, by)
    _check_plot(plot)
    form = i.ResultForm(json, numbers)
    pair = partial(load_pair, model, adapter, trust_remote_code=trust_remote_code)
    if probe is None and trace is None and told is None:
        _show_contents(targets, conversation, plot, form, pair)
        return
    if not has_memory(model, adapter):
        refuse_without_memory({"--probe": probe, "--told": told, "--trace": trace})
    settings = template_kwargs(chat_template_config)
    texts, memory = _texts(told, trace), _memory(targets[0], conversation) if targets else None
    if trace is not None:
        _show_trace(trace, texts, memory, pair, by is i.By.TOKEN, settings, max_kv_size, plot, form)
    elif memory is not None and told is not None:
        _show_told(told, texts, memory, pair, settings, plot, form)
    elif memory is not None and probe is not None:
        options: dict[str, Any] = {"answers": answer or [], "system_prompt": system_prompt}
        options |= {"template_kwargs": settings, "max_tokens": max_tokens}
        asked = _phrasings(probe, phrasing or [], rephrase)
        _show_probe(memory, pair, asked, options, plot, form)


def _texts(told: Path | None, trace: Path | None) -> list["Message"]:
    """What is to be read again or traced; looked at before a model is loaded."""
    from deltamem_mlx.cli.frame.telling import messages_of

    if told is not None:
        return messages_of(told, "--told")
    return [] if trace is None else messages_of(trace, "--trace")


def _by_name(target: str) -> str:
    """The file of a memory that is called so; else what is given, a file or a folder.

    Raises FileNotFoundError if there is none of these, but there are other memories.
    """
    from deltamem_mlx.files.places import is_name
    from deltamem_mlx.memory.shelf import MemoryShelf

    if (named := named_memory(target)) is not None:
        return str(named)
    shelf = MemoryShelf()
    if not is_name(target) or Path(target).exists() or not shelf.names():
        return target
    return str(shelf.path(target))


def _check_plot(plot: Path | None) -> None:
    """Raises before anything is computed: UsageError, or ImportError without matplotlib."""
    if plot is None:
        return
    from deltamem_mlx.views.figures import suffixes

    if plot.suffix.lower() not in suffixes():
        raise UsageError(
            f"--plot: {str(plot)!r} does not end as a picture's name; expected one of "
            f"{', '.join(suffixes())}."
        )


def _phrasings(question: str, others: list[str], rephrase: bool) -> list[str]:
    from deltamem_mlx.inspection.probe import rephrasings

    asked = [*(rephrasings(question) if rephrase else [question]), *others]
    return list(dict.fromkeys(asked))


def _memory(name: str, conversation: int) -> "MemoryContents":
    from deltamem_mlx.inspection.memory_contents import inspect_memory, is_session

    path = Path(name).expanduser()
    if path.is_dir() and not is_session(path):
        raise UsageError(f"{name!r} is a folder, but not of a saved session. Give a memory file.")
    if path.is_file() and path.suffix.lower() in TEXTS:
        raise UsageError(
            f"{name!r} is a text; expected an adapter or a memory file. To see what a text does to "
            f"a memory: --trace {name}"
        )
    return inspect_memory(path, conversation)


def _show_contents(
    targets: list[str], conversation: int, plot: Path | None, form: i.ResultForm, pair: Pair
) -> None:
    from deltamem_mlx.inspection import as_json as values
    from deltamem_mlx.inspection.adapter_contents import inspect_adapter
    from deltamem_mlx.inspection.memory_contents import compare
    from deltamem_mlx.views import inspection_report, inspection_words

    found: Any
    if len(targets) == 2:
        found = compare(*(_memory(name, conversation) for name in targets))
        if not found.same_adapter:
            output.warn(
                "The memories were written under different adapters: what is near or far here "
                "means nothing. Compare memories of one adapter."
            )
        kind = "comparison"
    elif _is_adapter(targets[0]):
        found, kind = inspect_adapter(targets[0]), "adapter"
    else:
        found, kind = _memory(targets[0], conversation), "memory"
    if form.json:
        output.result_json(getattr(values, f"{kind}_json")(found))
    else:
        words = getattr(inspection_words, f"{kind}_words")(found)
        figures = getattr(inspection_report, f"{kind}_text")
        _say(words, lambda: figures(found), form)
        if kind == "memory":
            name = shlex.quote(shown_memory(Path(targets[0])))
            output.note(f"To ask it: deltamem-mlx inspect {name} --probe QUESTION")
    if plot is not None:
        from deltamem_mlx.views import inspection_plots, memory_plot

        if kind == "memory":
            held = words_of_its_own(Path(targets[0]).expanduser(), found, pair)
            picture = memory_plot.draw_memory(found, held)
        else:
            picture = getattr(inspection_plots, f"draw_{kind}")(found)
        _save(picture, plot)


def _is_adapter(name: str) -> bool:
    """Whether a name is that of an adapter rather than of a memory, by what is there or its looks.

    A name that is neither a file nor a folder is a repository, unless it ends as a file's name.
    """
    from deltamem_mlx.inspection.memory_contents import is_session

    path = Path(name).expanduser()
    if path.is_dir():
        return not is_session(path)
    return not path.is_file() and path.suffix.lower() != ".safetensors"


def _show_probe(
    memory: "MemoryContents",
    pair: Pair,
    phrasings: list[str],
    options: dict[str, Any],
    plot: Path | None,
    form: i.ResultForm,
) -> None:
    from deltamem_mlx.inspection.as_json import probe_json
    from deltamem_mlx.inspection.probe import probe
    from deltamem_mlx.views.inspection_report import probe_text
    from deltamem_mlx.views.inspection_words import probe_words

    loaded, tokenizer = pair()
    state, found = states_of(memory, loaded), []
    with answering(len(phrasings)) as done:
        for phrasing in phrasings:
            found += probe(loaded, tokenizer, state, [phrasing], **options)
            done(1)
    if form.json:
        output.result_json(probe_json(found, memory))
    else:
        _say(probe_words(found), lambda: probe_text(found), form)
    if plot is not None:
        from deltamem_mlx.views.inspection_plots import draw_probe

        _save(draw_probe(found, memory.name), plot)


def _show_told(
    path: Path,
    messages: list["Message"],
    memory: "MemoryContents",
    pair: Pair,
    settings: dict[str, Any],
    plot: Path | None,
    form: i.ResultForm,
) -> None:
    from deltamem_mlx.inspection.as_json import held_json
    from deltamem_mlx.views.inspection_report import held_text
    from deltamem_mlx.views.inspection_words import held_words_text

    found = words_held(memory, messages, pair(), settings)
    if form.json:
        output.result_json(held_json(found, memory.name, path.name))
    else:
        _say(held_words_text(found, memory.name, path.name), lambda: held_text(found), form)
    if plot is not None:
        from deltamem_mlx.views.memory_plot import draw_memory

        _save(draw_memory(memory, found), plot)


def _show_trace(
    path: Path,
    messages: list["Message"],
    memory: "MemoryContents | None",
    pair: Pair,
    by_token: bool,
    settings: dict[str, Any],
    max_kv_size: int | None,
    plot: Path | None,
    form: i.ResultForm,
) -> None:
    from deltamem_mlx.inspection.as_json import trace_json
    from deltamem_mlx.inspection.script import messages_script, text_script
    from deltamem_mlx.inspection.trace import trace
    from deltamem_mlx.text.files import holds_messages
    from deltamem_mlx.views.inspection_report import tokens_text, trace_text
    from deltamem_mlx.views.inspection_words import trace_words

    loaded, tokenizer = pair()
    if path.is_dir() or holds_messages(path):
        script = messages_script(tokenizer, messages, settings)
    else:
        text = "\n\n".join(str(message["content"]) for message in messages)
        script = text_script(tokenizer, text, settings)
    state = None if memory is None else states_of(memory, loaded)
    watch: dict[str, Any] = {"every_token": by_token, "max_kv_size": max_kv_size}
    with reading("tracing") as show:
        found = trace(loaded, script, state=state, **watch, progress=show)
    if found.granularity != "token":
        output.note("This adapter writes means over spans: β of a token is not what is written.")
    if form.json:
        output.result_json(trace_json(found, path.name, by_token=by_token))
    else:
        words = trace_words(found, path.name)
        words += f"\n\n{tokens_text(found)}" if by_token else ""
        _say(words, lambda: trace_text(found, path.name), form)
    if plot is not None:
        from deltamem_mlx.views.trace_plot import draw_trace

        _save(draw_trace(found, path.name, by_token=by_token), plot)


def _say(words: str, figures: Callable[[], str], form: i.ResultForm) -> None:
    """Say it in words, and in figures where they were asked for."""
    output.result(f"{words}\n\n{figures()}" if form.numbers else words)
    if not form.numbers:
        output.note("In figures: --numbers")


def _save(picture: "Figure", path: Path) -> None:
    from deltamem_mlx.views.figures import save

    save(picture, path)
    output.note(f"Drew {path}.")
