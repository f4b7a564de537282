"""Whether a row has the same bits in any batch on this processor, on which a gap of 0 rests: measured on a model's own widths.

Outer widths are cut, because they only repeat; inner widths, over which is summed, are the model's. Axes: N rows, H query heads, G key
heads, S rows of the store, W row width, K key width, X experts of a token.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from samepath.kernels.backend import round_up
from samepath.kernels.dense_attention.dense_attention import dense_attend
from samepath.kernels.experts.expert_product import expert_product
from samepath.kernels.indexer.index_logits import index_logits
from samepath.kernels.mkl_mode import row_mode_problem
from samepath.kernels.rows.head_product import head_product
from samepath.kernels.rows.row_product import product_libraries, row_product
from samepath.kernels.sparse_attention.sparse_attention import attend
from samepath.kernels.window import AttentionPlan
from samepath.model.config import ModelConfig
from samepath.model.plan import Span, plan_decode, plan_spans
from samepath.rl.machine import cpu_model
from samepath.rl.validate.finding import Finding

NUM_ROWS = 256
ROW_COUNTS = (16, 48, 128)
LENGTHS = (1, 2, 3, 15, 100, 200)
STORED_ROWS = 304
"""Keys of the longest sequence."""
MAX_WEIGHT_ELEMENTS = 1 << 20
"""Outer widths are cut to this many elements of a weight."""
MAX_HEADS, MAX_SELECTED = 8, 256

WHAT_TO_DO = "Set rl.max_gap_at_lag_0 to what you accept, or compute on a GPU."
"""Where a row depends on its batch although MKL is in its exact mode."""

Comparison = tuple[str, Callable[[], Tensor], Tensor]
"""What is compared, the product of some rows alone, and the same rows of a larger batch's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowShapes:
    """Widths of the products of one model.

    Example:
        RowShapes(products=((576, 960), (1536, 576)), attention=((3, 9, 64, 64),))
    """

    products: tuple[tuple[int, int], ...]
    """(inner, outer) of products with weights."""
    experts: tuple[tuple[int, int], ...] = ()
    """(model width, expert width)."""
    attention: tuple[tuple[int, int, int, int], ...] = ()
    """(key heads, query heads, key width, value width); a key row of one head that is narrower than both holds its value first."""
    absorbed: tuple[tuple[int, int, int], ...] = ()
    """(heads, inner, outer) of products with a matrix for each head."""
    selected: tuple[tuple[int, int, int, int], ...] = ()
    """(query heads, key width, value width, keys) of attention over selected keys."""
    indexer: tuple[tuple[int, int], ...] = ()
    """(heads, width)."""


COMMON = RowShapes(
    products=((48, 96), (64, 256), (128, 512), (576, 1536), (768, 576), (1024, 1024), (1536, 576), (2048, 256)),
    experts=((128, 64), (512, 192)),
    attention=((3, 9, 64, 64), (2, 8, 128, 128), (1, 4, 576, 512)),
    absorbed=((4, 128, 512), (4, 512, 128)),
    selected=((4, 576, 512, 64),),
    indexer=((4, 128),),
)
"""Widths of the families that this package trains, small and large."""


def model_shapes(config: ModelConfig) -> RowShapes:
    """The products of one layer of each kind, and the head."""
    width, heads = config.hidden_size, config.num_attention_heads
    products = {(width, config.vocab_size), (width, 2 * config.intermediate_size), (config.intermediate_size, width)}
    selected: tuple[tuple[int, int, int, int], ...] = ()
    absorbed: tuple[tuple[int, int, int], ...] = ()
    if config.latent_attention:
        nope, value, latent = config.qk_nope_head_dim, config.v_head_dim, config.kv_lora_rank
        query_up = (config.q_lora_rank or width, heads * (nope + config.qk_rope_head_dim))
        products |= {(width, config.q_lora_rank or config.key_width), query_up, (heads * value, width)}
        absorbed = ((heads, nope, latent), (heads, latent, value))
        attention = (1, heads, config.key_width, latent)
        if config.index_topk:
            selected = ((heads, config.key_width, latent, config.index_topk),)
    else:
        head = config.head_width
        products |= {(width, (heads + 2 * config.key_heads) * head), (heads * head, width)}
        attention = (config.key_heads, heads, head, head)
        if config.index_topk:
            selected = ((heads // config.key_heads, config.key_row_width, head, config.index_topk),)
    return RowShapes(
        products=tuple(sorted(products)),
        experts=((width, config.moe_intermediate_size),) if config.moe_layers else (),
        attention=() if selected else (attention,),
        absorbed=absorbed,
        selected=selected,
        indexer=((config.index_n_heads, config.index_head_dim),) if config.index_topk else (),
    )


def instructions() -> str:
    """The processor, and the vector instructions that torch uses on it."""
    return f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"


def row_finding(config: ModelConfig, threads: Sequence[int], limit: float) -> Finding:
    """Whether rows stand alone for this model's widths; `limit` is the gap in nats that the recipe accepts."""
    made_by = f"{instructions()}; {product_libraries()}"
    different, problem = first_dependent_row(model_shapes(config), threads), row_mode_problem()
    if different is None and problem is None:
        detail = f"a row of this model's widths has the same bits in any batch ({made_by})"
        return Finding(name="row exactness", outcome="ok", detail=detail)
    found = "nothing differed in a quick look" if different is None else f"rows differ with the batch for {different}"
    detail = f"{found} ({made_by}); {problem or WHAT_TO_DO}"
    return Finding(name="row exactness", outcome="ok" if limit > 0 else "obstacle", detail=detail)


def first_dependent_row(shapes: RowShapes, threads: Sequence[int]) -> str | None:
    """The first product whose rows differ from those of a larger batch, or of one with other threads; None if all are equal."""
    with _threads(threads[0]):
        for what, alone, wanted in _comparisons(shapes, torch.Generator().manual_seed(0)):
            for count in threads:
                with _threads(count):
                    got = alone()
                if not torch.equal(got, wanted):
                    return f"{what}, {count} thread{'s' if count > 1 else ''}"
    return None


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _comparisons(shapes: RowShapes, generator: torch.Generator) -> Iterator[Comparison]:
    for inner, outer in shapes.products:
        yield from _product(inner, outer, generator)
    for width, expert_width in shapes.experts:
        yield from _experts(width, expert_width, generator)
    for heads, inner, outer in shapes.absorbed:
        yield from _absorbed(min(heads, MAX_HEADS), inner, outer, generator)
    for key_heads, query_heads, width, value_width in shapes.attention:
        shared = min(query_heads // key_heads, MAX_HEADS)
        yield from _attention(min(key_heads, MAX_HEADS), shared, width, value_width, generator)
    for heads, width, value_width, keys in shapes.selected:
        yield from _selected(min(heads, MAX_HEADS), width, value_width, min(keys, MAX_SELECTED), generator)
    for heads, width in shapes.indexer:
        yield from _indexer(min(heads, MAX_HEADS), width, generator)


def _product(inner: int, outer: int, generator: torch.Generator) -> Iterator[Comparison]:
    x_ND = torch.randn(NUM_ROWS, inner, generator=generator)
    weight = torch.randn(min(outer, max(16, MAX_WEIGHT_ELEMENTS // inner)), inner, generator=generator)
    return _row_counts(f"a product of width {inner}", lambda x: row_product(x, weight), x_ND)


def _experts(width: int, expert_width: int, generator: torch.Generator) -> Iterator[Comparison]:
    x_ND = torch.randn(NUM_ROWS, width, generator=generator)
    gate_up_EGD = torch.randn(
        2, 2 * min(expert_width, max(16, MAX_WEIGHT_ELEMENTS // width)), width, generator=generator
    )
    down_EDF = torch.randn(2, width, gate_up_EGD.shape[1] // 2, generator=generator)

    def run(x: Tensor) -> Tensor:
        """Every token takes both experts."""
        ids_NX = torch.arange(2).expand(len(x), 2)
        return expert_product(x, torch.ones(len(x), 2), ids_NX, gate_up_EGD, down_EDF, "torch")

    return _row_counts(f"experts of width {expert_width} on {width}", run, x_ND)


def _absorbed(heads: int, inner: int, outer: int, generator: torch.Generator) -> Iterator[Comparison]:
    x_NHK = torch.randn(NUM_ROWS, heads, inner, generator=generator)
    weight_HKM = torch.randn(heads, inner, outer, generator=generator)
    return _row_counts(
        f"a product of each head of width {inner}", lambda x: head_product(x, weight_HKM, "torch"), x_NHK
    )


def _row_counts(what: str, run: Callable[[Tensor], Tensor], x: Tensor) -> Iterator[Comparison]:
    whole = run(x)
    for count in ROW_COUNTS:
        rows = slice(64, 64 + count)
        yield f"{what}, {count} rows", partial(run, x[rows].clone()), whole[rows]


def _attention(
    groups: int, shared: int, width: int, value_width: int, generator: torch.Generator
) -> Iterator[Comparison]:
    """A sequence alone, and its last row decoded beside a longer sequence, against the pass over that longer one."""
    # The latent holds its value; a key head has the value beside its key.
    start = 0 if value_width < width else width
    rows_GSW = torch.randn(groups, STORED_ROWS, max(width, start + value_width), generator=generator)
    q_NHK = torch.randn(STORED_ROWS, groups * shared, width, generator=generator)
    keys_S = torch.arange(STORED_ROWS)

    def run(q: Tensor, plan: AttentionPlan, kept: slice) -> Tensor:
        out_NHV = dense_attend(
            q, rows_GSW, plan, scale=0.1, value_start=start, value_width=value_width, backend="torch"
        )
        return out_NHV[kept]

    def packed(length: int) -> Tensor:
        num_rows = round_up(length)
        plan = plan_spans([Span(row=0, first=0, count=length, keys=keys_S)], num_rows, groups * shared)
        return run(q_NHK[:num_rows], plan, slice(0, length))

    whole = packed(STORED_ROWS)
    for length in LENGTHS:
        what = f"attention of width {width} over {length} keys"
        yield what, partial(packed, length), whole[:length]
        ends = [length, STORED_ROWS]
        plan = plan_decode(torch.tensor(ends), keys_S.expand(2, -1), 16, groups * shared)
        q = torch.zeros_like(q_NHK[:16])
        q[:2] = q_NHK[[end - 1 for end in ends]]
        yield f"{what} beside {STORED_ROWS}", partial(run, q, plan, slice(0, 2)), whole[[end - 1 for end in ends]]


def _selected(heads: int, width: int, value_width: int, keys: int, generator: torch.Generator) -> Iterator[Comparison]:
    q_NHK = torch.randn(48, heads, width, generator=generator)
    kv_SK = torch.randn(STORED_ROWS, width, generator=generator)
    indices_NC = torch.randint(0, STORED_ROWS, (48, keys), generator=generator, dtype=torch.int32)
    count_N = torch.randint(1, keys + 1, (48,), generator=generator, dtype=torch.int32)

    def run(rows: slice) -> Tensor:
        q, indices, count = q_NHK[rows], indices_NC[rows], count_N[rows]
        return attend(q, kv_SK, indices, count, scale=0.1, value_width=value_width, backend="torch")[0]

    whole = run(slice(0, 48))
    for rows in (slice(5, 6), slice(16, 32)):
        what = f"attention of width {width} over {keys} selected keys, {rows.stop - rows.start} rows"
        yield what, partial(run, rows), whole[rows]


def _indexer(heads: int, width: int, generator: torch.Generator) -> Iterator[Comparison]:
    q_BTIK = torch.randn(1, 64, heads, width, generator=generator)
    k_BSK = torch.randn(1, STORED_ROWS, width, generator=generator)
    weights_BTI = torch.randn(q_BTIK.shape[:3], generator=generator)

    def run(rows: slice, end: int) -> Tensor:
        return index_logits(q_BTIK[:, rows], k_BSK[:, :end], weights_BTI[:, rows], "torch")

    whole = run(slice(0, 64), STORED_ROWS)
    for count, end in ((1, STORED_ROWS), (3, 48), (16, 112)):
        rows = slice(7, 7 + count)
        yield f"index logits of width {width}, {count} rows", partial(run, rows, end), whole[:, rows, :end]
