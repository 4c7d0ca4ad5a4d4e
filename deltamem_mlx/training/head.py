"""The language-model head where there are labels, and nowhere else."""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from ..model.projections import view_of

HEADS = ("lm_head", "head", "output", "embed_out")


class GatheredHead(nn.Module):
    """A head, or an embedding used as one, that is shown some of the hidden states only.

    A module, as some models ask whether their head is among their modules.

    Args:
        module (nn.Module): The head or embedding.
        rows (mx.array): [N] indices into the B·T positions.
        used (list[str]): Grows when the module was used as a head.
    """

    module: nn.Module
    rows: mx.array
    used: list[str]

    def __init__(self, module: nn.Module, rows: mx.array, used: list[str]):
        super().__init__()
        # Not as items, which would be parameters.
        vars(self).update(module=module, rows=rows, used=used)

    def __call__(self, x: mx.array) -> mx.array:
        return self.module(x if _is_embedding(self.module) else self._gather(x))

    def as_linear(self, x: mx.array) -> mx.array:
        return self.module.as_linear(self._gather(x))

    def _gather(self, x: mx.array) -> mx.array:
        self.used.append(type(self.module).__name__)
        return x.reshape(-1, x.shape[-1])[self.rows][None]

    def __getattr__(self, name: str) -> object:
        return getattr(self.module, name)


def _is_embedding(module: nn.Module) -> bool:
    return hasattr(module, "as_linear")


def find_heads(model: nn.Module) -> list[str]:
    """Paths of the modules that may turn hidden states into logits, none of them in a layer."""
    inside = {id(m) for layer in model.layers for m in layer.modules()}
    return [
        path
        for path, module in model.named_modules()
        if path and id(module) not in inside and (_is_embedding(module) or _is_head(path, module))
    ]


def _is_head(path: str, module: nn.Module) -> bool:
    return path.rpartition(".")[2] in HEADS and "weight" in module


def labelled_logits(
    model: nn.Module, heads: Sequence[str], tokens: mx.array, cache: list, rows: mx.array
) -> mx.array:
    """Logits [N, V] at the positions ``rows`` of tokens [B, T].

    The model runs as a view of itself whose heads gather first. Where it makes its logits in
    another way, all of them are computed, then gathered.

    Args:
        model (nn.Module): The model.
        heads (Sequence[str]): From `find_heads`.
        tokens (mx.array): int32 [B, T].
        cache (list): The prompt cache.
        rows (mx.array): int32 [N], indices into the B·T positions.
    """
    used: list[str] = []
    paths = [path.split(".") for path in heads]
    view = _with(model, paths, lambda module: GatheredHead(module, rows, used))
    logits = view(tokens, cache=cache)
    return logits[0] if used else logits.reshape(-1, logits.shape[-1])[rows]


def _with(
    module: nn.Module,
    paths: Sequence[Sequence[str]],
    wrap: Callable[[nn.Module], GatheredHead],
) -> nn.Module:
    """A view of ``module`` with the modules at ``paths`` wrapped."""
    if not paths:
        return module
    view = view_of(module)
    for name in {path[0] for path in paths}:
        inner = [path[1:] for path in paths if path[0] == name and len(path) > 1]
        vars(view)[name] = _with(module[name], inner, wrap) if inner else wrap(module[name])
    return view
