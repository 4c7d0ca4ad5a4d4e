"""Small models of no architecture that mlx-lm knows, each with a kind of attention it does know."""

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_attention_mask, scaled_dot_product_attention
from mlx_lm.models.cache import KVCache

VOCAB, WIDTH, HEADS, KV_HEADS, SIDE = 96, 32, 4, 2, 8


def heads_of(x: mx.array, count: int) -> mx.array:
    """[B, T, count · d] → [B, count, T, d]"""
    return x.reshape(*x.shape[:2], count, -1).swapaxes(1, 2)


def attend(q: mx.array, k: mx.array, v: mx.array, mask: object, cache: object) -> mx.array:
    y = scaled_dot_product_attention(q, k, v, cache=cache, scale=SIDE**-0.5, mask=mask)
    return y.swapaxes(1, 2).flatten(2)


class Grouped(nn.Module):
    """Packed rows in groups: for each KV head its queries, its key, its value."""

    def __init__(self, index: int):
        super().__init__()
        self.groups = KV_HEADS
        self.query_key_value = nn.Linear(WIDTH, (HEADS + 2 * KV_HEADS) * SIDE, bias=True)
        self.wo = nn.Linear(HEADS * SIDE, WIDTH, bias=False)

    def rows(self, x: mx.array) -> list[mx.array]:
        packed = self.query_key_value(x).reshape(*x.shape[:2], self.groups, -1)
        per = HEADS // KV_HEADS * SIDE
        return mx.split(packed, [per, per + SIDE], axis=-1)

    def __call__(self, x: mx.array, mask: object = None, cache: KVCache | None = None) -> mx.array:
        q, k, v = (part.flatten(2) for part in self.rows(x))
        q, k, v = heads_of(q, HEADS), heads_of(k, KV_HEADS), heads_of(v, KV_HEADS)
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        return self.wo(attend(q, k, v, mask, cache))


class Swapped(Grouped):
    """The same with the value before the key, an order that nobody uses."""

    def rows(self, x: mx.array) -> list[mx.array]:
        q, v, k = super().rows(x)
        return [q, k, v]


class Latent(nn.Module):
    """Queries by way of a narrow layer; keys and values from one latent vector."""

    def __init__(self, index: int):
        super().__init__()
        self.q_a_proj = nn.Linear(WIDTH, 16, bias=False)
        self.q_b_proj = nn.Linear(16, HEADS * SIDE, bias=False)
        self.kv_a = nn.Linear(WIDTH, 12, bias=False)
        self.kv_b = nn.Linear(12, 2 * HEADS * SIDE, bias=False)
        self.out_proj = nn.Linear(HEADS * SIDE, WIDTH, bias=False)

    def __call__(self, x: mx.array, mask: object = None, cache: KVCache | None = None) -> mx.array:
        k, v = mx.split(self.kv_b(self.kv_a(x)), 2, axis=-1)
        q, k, v = (heads_of(y, HEADS) for y in (self.q_b_proj(self.q_a_proj(x)), k, v))
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        return self.out_proj(attend(q, k, v, mask, cache))


class Borrowing(nn.Module):
    """Odd layers look at the keys and values of the layer before, and get no cache."""

    def __init__(self, index: int):
        super().__init__()
        self.borrows = index % 2 == 1
        self.c_q = nn.Linear(WIDTH, HEADS * SIDE, bias=False)
        if not self.borrows:
            self.c_k = nn.Linear(WIDTH, KV_HEADS * SIDE, bias=False)
            self.c_v = nn.Linear(WIDTH, KV_HEADS * SIDE, bias=False)
        self.c_proj = nn.Linear(HEADS * SIDE, WIDTH, bias=False)

    def __call__(
        self, x: mx.array, kept: list, *, cache: KVCache | None = None, mask: object = None
    ) -> mx.array:
        q = heads_of(self.c_q(x), HEADS)
        if not self.borrows:
            k, v = heads_of(self.c_k(x), KV_HEADS), heads_of(self.c_v(x), KV_HEADS)
            kept[:] = (k, v) if cache is None else cache.update_and_fetch(k, v)
        return self.c_proj(attend(q, *kept, mask, None))


class Layer(nn.Module):
    """An attention, or two one after the other, under a name of its own."""

    def __init__(self, kind: type[nn.Module], index: int, count: int):
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        if count == 1:
            self.mixing = kind(index)
        else:
            self.mixing = [kind(index) for _ in range(count)]
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def attentions(self) -> list[nn.Module]:
        return self.mixing if isinstance(self.mixing, list) else [self.mixing]


class Model(nn.Module):
    """Four layers of one kind of attention.

    Args:
        kind (type[nn.Module]): The attention.
        count (int): Attentions a layer, each with a KV cache of its own.
    """

    def __init__(self, kind: type[nn.Module], count: int = 1):
        super().__init__()
        self.model_type = f"made up of {kind.__name__}"
        self.kind, self.count = kind, count
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = [Layer(kind, i, count) for i in range(4)]
        self.head = nn.Linear(WIDTH, VOCAB)

    def make_cache(self) -> list[KVCache]:
        shared = self.kind is Borrowing
        return [KVCache() for _ in range(2 if shared else 4 * self.count)]

    def __call__(self, tokens: mx.array, cache: list | None = None) -> mx.array:
        h, kept = self.embed(tokens), []
        order = self._order(cache)
        mask = create_attention_mask(h, order[0])
        for i, layer in enumerate(self.layers):
            for j, attention in enumerate(layer.attentions()):
                own = order[i * self.count + j]
                given = [kept] if self.kind is Borrowing else []
                h = h + attention(layer.norm(h), *given, mask=mask, cache=own)
            h = h + mx.tanh(layer.mlp(h))
        return self.head(h)

    def _order(self, cache: list | None) -> list:
        """A cache for each attention: those that borrow come after all others."""
        if cache is None:
            return [None] * 4 * self.count
        if self.kind is not Borrowing:
            return cache
        own, further = cache[:2], [*cache[2:], None, None][:2]
        return [own[0], further[0], own[1], further[1]]


def made_up(kind: type[nn.Module], count: int = 1) -> Model:
    """A model with seeded random weights."""
    mx.random.seed(3)
    model = Model(kind, count).eval()
    mx.eval(model.parameters())
    return model
