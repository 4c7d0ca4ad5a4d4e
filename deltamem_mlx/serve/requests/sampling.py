"""How an answer is to be made: the parameters of mlx-lm's server, over the ranges that its samplers
take, and those of OpenAI's that it does not know.
"""

import json
from dataclasses import dataclass

from ...problems import shortened
from ..errors import ApiError, refuse
from ..settings import ServeSettings, SettingsError
from .fields import Fields

_MOST_STOPS, _LONGEST_STOP, _MOST_BIASES, _LARGEST_BIAS = 16, 256, 1024, 1e9
_MOST_TOP_LOGPROBS = 11  # mlx-lm's
_COLDEST, _HOTTEST = 1e-4, 1e4
_RANDOM = -1  # a seed that means none, to llama.cpp's clients


@dataclass(frozen=True)
class Parameters:
    """What a request asks of mlx-lm's sampling, by the names that mlx-lm's handler has for it."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    xtc_probability: float
    xtc_threshold: float
    repetition_penalty: float
    repetition_context_size: int
    presence_penalty: float
    presence_context_size: int
    frequency_penalty: float
    frequency_context_size: int
    logit_bias: dict[int, float] | None
    logprobs: bool
    top_logprobs: int
    seed: int | None


def read_parameters(fields: Fields, settings: ServeSettings, vocabulary: int) -> Parameters:
    """The parameters of a request, the server's defaults where it names none.

    Args:
        fields (Fields): Of its body.
        settings (ServeSettings): Of the server.
        vocabulary (int): Width of the model's logits.

    Raises:
        ApiError: If one is not what mlx-lm's samplers take: they would fail within the batch.
    """
    seed = fields.whole("seed", _RANDOM, _RANDOM, 2**63 - 1)
    return Parameters(
        max_tokens=_max_tokens(fields, settings),
        temperature=_temperature(fields, settings),
        top_p=fields.number("top_p", settings.top_p, 0, 1),
        top_k=fields.whole("top_k", settings.top_k, 0, vocabulary - 1),
        min_p=fields.number("min_p", settings.min_p, 0, 1),
        xtc_probability=fields.number("xtc_probability", 0.0, 0, 1),
        xtc_threshold=fields.number("xtc_threshold", 0.1, 0, 0.5),
        repetition_penalty=fields.number("repetition_penalty", 0.0, 0),
        repetition_context_size=fields.whole("repetition_context_size", 20),
        presence_penalty=fields.number("presence_penalty", 0.0),
        presence_context_size=fields.whole("presence_context_size", 20),
        frequency_penalty=fields.number("frequency_penalty", 0.0),
        frequency_context_size=fields.whole("frequency_context_size", 20),
        logit_bias=_logit_bias(fields, vocabulary),
        logprobs=fields.flag("logprobs"),
        top_logprobs=fields.whole("top_logprobs", -1, -1, min(_MOST_TOP_LOGPROBS, vocabulary)),
        seed=None if seed == _RANDOM else seed,
    )


def check_defaults(settings: ServeSettings, vocabulary: int = 2**31) -> None:
    """Raises SettingsError if requests that name no parameter could not be answered."""
    options = {"temperature": "temp", "max_completion_tokens": "max_tokens"}
    try:
        read_parameters(Fields({}), settings, vocabulary)
    except ApiError as error:
        name = options.get(str(error.param), str(error.param))
        expected = str(error).partition(": ")[2]
        option = f"--{name.replace('_', '-')}"
        raise SettingsError(f"{option} {getattr(settings, name)}: {expected}") from None


def _temperature(fields: Fields, settings: ServeSettings) -> float:
    """Where half precision would overflow: the likeliest token, or any."""
    given = fields.number("temperature", settings.temp, 0)
    return 0.0 if given < _COLDEST else min(given, _HOTTEST)


def _max_tokens(fields: Fields, settings: ServeSettings) -> int:
    """Clients name the most that they would take, which may be more than is ever given."""
    limit = settings.max_tokens_limit
    usual = fields.whole("max_tokens", min(settings.max_tokens, limit), 1)
    found = fields.whole("max_completion_tokens", usual, 1)
    if "max_tokens" in fields.values and found != usual:
        refuse("max_completion_tokens", "the same as max_tokens, which is there too")
    return min(found, limit)


def _logit_bias(fields: Fields, vocabulary: int) -> dict[int, float] | None:
    given = fields.mapping("logit_bias")
    if len(given) > _MOST_BIASES:
        refuse("logit_bias", f"an object of at most {_MOST_BIASES} token ids")
    biases = {}
    for token, value in given.items():
        digits = token.isascii() and token.isdigit() and len(token) < 10
        known = digits and str(int(token)) == token and int(token) < vocabulary
        if not known or not isinstance(value, int | float) or isinstance(value, bool):
            refuse("logit_bias", f"token ids below {vocabulary} with numbers")
        if not abs(value) < _LARGEST_BIAS:
            refuse("logit_bias", f"numbers smaller than {_LARGEST_BIAS:g}")
        biases[int(token)] = float(value)
    return biases or None


def read_stop(fields: Fields) -> list[str]:
    """The texts that end an answer."""
    stop = fields.values.get("stop", [])
    words = [stop] if isinstance(stop, str) else stop
    if not isinstance(words, list) or len(words) > _MOST_STOPS:
        refuse("stop", f"text, or a list of at most {_MOST_STOPS} texts")
    if not all(isinstance(word, str) and 0 < len(word) <= _LONGEST_STOP for word in words):
        refuse("stop", f"texts of 1 to {_LONGEST_STOP} characters")
    return words


# What OpenAI's API knows and this server does in one way only.
_ONE_WAY: dict[str, tuple[object, ...]] = {
    "adapters": ("default_model",),
    "best_of": (1,),
    "draft_model": ("default_model",),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "n": (1,),
    "suffix": ("",),
}
# What changes nothing in an answer.
_IGNORED = {
    "metadata", "num_draft_tokens", "prediction", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user", "verbosity",
}  # fmt: skip


def check_known(fields: Fields, known: set[str]) -> None:
    """Raises ApiError for what would be left undone without a word.

    Args:
        fields (Fields): Of a body.
        known (set[str]): Names that are read elsewhere, beside those of ``Parameters``.
    """
    known = known | set(Parameters.__dataclass_fields__) | {"max_completion_tokens", "stop"}
    for name, value in fields.values.items():
        if name in _ONE_WAY:
            if not any(type(value) is type(way) and value == way for way in _ONE_WAY[name]):
                ways = " or ".join(map(json.dumps, _ONE_WAY[name]))
                refuse(name, f"{ways}: this server does nothing else")
        elif name not in known | _IGNORED:
            said = shortened(name, 40)
            raise ApiError(
                400,
                f"This server knows no parameter {said} here. Leave it out.",
                param=name[:40],
                code="unknown_parameter",
            )
