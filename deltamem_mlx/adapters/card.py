"""The model card of an adapter: a README.md with the front matter that the Hub reads."""

from collections.abc import Mapping

from huggingface_hub import ModelCardData

from ..config import HEADS, acting_settings
from ..hub import REPO_ID
from ..model.names import BUILTIN
from .files import AdapterFiles
from .loading import fingerprint_of

TAGS = ("delta-mem", "mlx", "mlx-lm")
WRITES = {
    "token": "It is read and rewritten with every token.",
    "message_mean": "It is written once per message that is told, with the mean of its tokens.",
    "sentence_mean": "It is written once per sentence that is told, with the mean of its tokens.",
}

BODY = """\
# {title}

A [δ-mem](https://arxiv.org/abs/2605.12357) adapter for {base}, to be used with
[mlx-lm](https://github.com/ml-explore/mlx-lm) and deltamem-mlx. The model stays as it is; the
adapter gives {attentions} a memory of fixed size, which stays when the context is
gone. {writes}

## Use

```bash
deltamem-mlx generate --model {model} --adapter {repo} \\
  --remember notes.txt --prompt "Who did I say would call on Monday?"
```

In a plain mlx-lm script:

```python
import deltamem_mlx as dm
from mlx_lm import generate
from mlx_lm.models.cache import make_prompt_cache

model, tokenizer = dm.load("{model}", "{repo}")
cache = make_prompt_cache(model)  # the conversation: KV cache and memory


def ask(text):
    prompt = tokenizer.apply_chat_template(
        [{{"role": "user", "content": text}}], add_generation_prompt=True
    )
    return generate(model, tokenizer, prompt, prompt_cache=cache)


ask("My sister Maria lives in Porto.")
dm.forget_context(cache)  # the tokens are gone, what was written stays
ask("Where does Maria live?")
```
{placeholder}
## What it holds

{holds}

## Settings

{settings}
"""


def model_card(
    adapter: AdapterFiles,
    repo: str,
    sizes: Mapping[str, int],
    *,
    branch: str | None = None,
    license: str | None = None,
) -> str:
    """A model card made of what the adapter's files tell; it claims nothing that was measured.

    Args:
        adapter (AdapterFiles): The adapter, its ``base_model`` named as on the Hub.
        repo (str): Where it is to be found, ``user/name``.
        sizes (Mapping[str, int]): File → bytes.
        branch (str): The branch, where it is not the main one.
        license (str): The Hub's name of a license. Default: none is stated.
    """
    base = adapter.base_model.get("name")
    found = REPO_ID.fullmatch(base) if isinstance(base, str) else None
    on_hub = found["repo"] if found else None
    described = f"`{base}`" if on_hub else _described(adapter)
    layers = sorted({int(name.split(".")[2]) for name in adapter.tensors})
    plural = len(layers) != 1
    body = BODY.format(
        title=repo.rpartition("/")[2],
        base=described,
        attentions=f"{len(layers)} of its attention layers" if plural else "one attention layer",
        model=base if on_hub else "MODEL",
        repo=f"{repo}@{branch}" if branch else repo,
        placeholder="" if on_hub else "\n`MODEL` is the model it was trained on.\n",
        holds=_table(_holds(adapter, layers, sizes)),
        settings=_table({f"`{k}`": f"`{v}`" for k, v in acting_settings(adapter.config).items()}),
        writes=WRITES[adapter.config.memory_write_granularity],
    )
    return f"---\n{_front_matter(on_hub, license)}---\n\n{body}"


def _front_matter(base: str | None, license: str | None) -> str:
    data = ModelCardData(
        base_model=base,
        license=license,
        library_name="mlx",
        pipeline_tag="text-generation",
        tags=list(TAGS),
    )
    if base is not None:
        data["base_model_relation"] = "adapter"
    return f"{data.to_yaml()}\n"


def _described(adapter: AdapterFiles) -> str:
    """The base model of an adapter that names none of the Hub's."""
    known = adapter.base_model
    if known.get("name") == BUILTIN:
        return "the tiny model that deltamem-mlx carries"
    kind = f"`{known['model_type']}` " if known.get("model_type") else ""
    named = f" named `{known['name']}`" if known.get("name") else ""
    return f"a {kind}model{named}"


def _holds(adapter: AdapterFiles, layers: list[int], sizes: Mapping[str, int]) -> dict[str, str]:
    config, known = adapter.config, adapter.base_model
    off = {f"delta_{head}_proj" for head in HEADS if head not in config.delta_heads}
    acting = [x.size for n, x in adapter.tensors.items() if n.rpartition(".")[2] not in off]
    heads, rank = config.num_state_heads, config.rank
    state = f"{rank}×{rank} float32" if heads == 1 else f"{heads} × {rank}×{rank} float32"
    model = {"{} layers": known.get("num_layers"), "hidden size {}": known.get("hidden_size")}
    rows = {
        "base": ", ".join(text.format(value) for text, value in model.items() if value),
        "layers with a memory": ", ".join(map(str, layers)),
        "state of a layer": state,
        "memory of a conversation": f"{len(layers) * heads * rank * rank * 4:,} bytes",
        "corrected projections": ", ".join(config.delta_heads),
        "parameters": f"{sum(acting):,}",
        "files": ", ".join(f"`{name}` ({size:,} bytes)" for name, size in sizes.items()),
        "fingerprint": f"`{fingerprint_of(adapter)[:12]}`",
    }
    return {name: value for name, value in rows.items() if value}


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows.items())])
