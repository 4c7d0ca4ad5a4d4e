"""The models of `eval`: one, or with `--also-model` several under the same adapter."""

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamem_mlx.cli.frame import launched, output
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.load import has_memory, load_pair, refuse_without_memory
from deltamem_mlx.problems import shortened

if TYPE_CHECKING:
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

BUILTIN = "builtin"

Result = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """One model of an evaluation.

    Args:
        model, adapter (str): As given. None: the model that the adapter names; without either,
          the built-in pair.
        out (Path): Where its answers are kept.
    """

    model: str | None
    adapter: str | None
    out: Path | None

    def names(self, loaded: "nn.Module") -> dict[str, str]:
        """What the settings of a run say of it, once it is loaded."""
        from deltamem_mlx.adapters.loading import base_model_of

        model = self.model or str(base_model_of(loaded)["name"])
        return {"model": model, "adapter": self.adapter or BUILTIN}

    def load(
        self, *, trust_remote_code: bool, pipeline: bool = False
    ) -> tuple["nn.Module", "TokenizerWrapper"]:
        """Model and tokenizer."""
        from deltamem_mlx.evals.recall.builtin_data import load_builtin

        if self.model is None and self.adapter is None and launched.world().alone:
            return load_builtin()
        return load_pair(
            self.model, self.adapter, pipeline=pipeline, trust_remote_code=trust_remote_code
        )


def places(
    model: str | None, adapter: str | None, also: Sequence[str] | None, out: Path | None
) -> list[Place]:
    """The models to measure, each with a folder of its own below ``out`` if there are several.

    Raises:
        UsageError: If there is no adapter, a model is given twice, or the first of several is not.
    """
    if not has_memory(model, adapter):
        refuse_without_memory({"--model": model})
    if not also:
        return [Place(model, adapter, out)]
    if adapter is None:
        from deltamem_mlx import builtin

        model, adapter = str(builtin.base_folder()), str(builtin.adapter_folder())
    if model is None:
        raise UsageError("--also-model: give the first model by --model, too.")
    models = [model, *also]
    twice = {name for name in models if models.count(name) > 1}
    if twice:
        raise UsageError(f"--also-model: {', '.join(map(str, sorted(twice)))} is given twice.")
    folders = [None if out is None else out / _folder(i, m) for i, m in enumerate(models)]
    return [Place(m, adapter, folder) for m, folder in zip(models, folders, strict=True)]


def measured(
    chosen: Sequence[Place], out: Path | None, measure: Callable[[Place], Result]
) -> Result:
    """The result of one model, or of several under ``models`` with what they share above."""
    results = []
    with kept(out):
        _check_place(chosen, out)
        for place in chosen:
            results.append(measure(place))
            gc.collect()  # a model's weights, before the next are loaded
    if len(results) == 1:
        return results[0]
    first = results[0]
    shared = {
        name: value
        for name, value in first.items()
        if name not in ("model", *TABLES) and all(r.get(name) == value for r in results)
    }
    own = [{k: v for k, v in result.items() if k not in shared} for result in results]
    result = shared | {"models": own}
    if out is not None:
        from deltamem_mlx.evals.journal import write_result

        write_result(out, result)
    return result


TABLES = ("groups", "cells", "scores", "ratio")


@contextmanager
def kept(out: Path | None) -> Iterator[None]:
    """No other evaluation writes there; says, if this is interrupted, where the answers are.

    Raises:
        FolderInUse: If another evaluation does.
    """
    if out is None:
        yield
        return
    from deltamem_mlx.files import locked_folder

    try:
        with locked_folder(out, "another eval"):
            yield
    except KeyboardInterrupt:
        output.note(f"The answers so far are in {out}: the same command goes on with them.")
        raise


def _check_place(chosen: Sequence[Place], out: Path | None) -> None:
    """Raises ValueError if the result of several models would replace another's."""
    if out is None or len(chosen) == 1:
        return
    from deltamem_mlx.evals.journal import RESULT, RUN
    from deltamem_mlx.files import read_json

    if (out / RUN).exists():
        raise ValueError(f"{out} holds an evaluation of one model. Give another folder.")
    if not (out / RESULT).exists():
        return
    there = read_json(out / RESULT).get("models")
    names = (
        [one.get("model") for one in there if isinstance(one, dict)]
        if isinstance(there, list)
        else None
    )
    if names != [place.model for place in chosen]:
        raise ValueError(
            f"{out / RESULT} is of {shortened(names) if names else 'something else'}, not of these "
            "models. Give another folder."
        )


def _folder(number: int, model: str | None) -> str:
    name = re.sub(r"[^\w.-]+", "-", Path(model or BUILTIN).name)
    return f"{number}-{name}"
