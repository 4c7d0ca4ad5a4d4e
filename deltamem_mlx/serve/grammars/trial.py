"""A grammar from standard input, tried out in a process that can be ended.

Nothing bounds the time that llguidance takes to read a regular expression, and a thread in it
cannot be stopped. So what a client sends is tried here first, with single bytes for tokens. Run as
a file, which imports neither this package nor MLX.
"""

import sys


def main() -> None:
    """Says nothing if the grammar can be used."""
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(sys.stdin.read()))
    if not matcher.is_error():
        matcher.compute_bitmask()


if __name__ == "__main__":
    main()
