"""Records side by side in one sequence without padding, their common beginning once: less work, the same loss.

On a processor every token computed costs time. A padded batch computes padding, and the domain's system message once a
record; here the decoder sees one sequence of N tokens, `[beginning | record 1 | record 2 | ...]`, and attention alone
knows which tokens belong together. Attention looks back only, so the beginning's keys and values are the same for every
record, and their gradients add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from preceptor_trainer.train.batches import IGNORED

ATTENTION = "preceptor_side_by_side"
"""Name under which transformers finds `attend`; without `layout` it is transformers' own attention."""
ARCHITECTURES = frozenset({"llama", "mistral", "phi3", "qwen2"})
"""Whose decoders pass `layout` on to attention; a test holds each to the padded batch."""
_WORTH_SHARING = 8
"""Shorter common beginnings, in tokens, are computed record by record."""


class Layout(NamedTuple):
    """Who may look at whom. R records, S the longest one's own tokens, N tokens of all."""

    shared: int
    """Tokens of the common beginning, which lies first."""
    gather_RS: torch.Tensor
    """Position in the sequence of each record's own tokens; short records repeat their last."""
    scatter_N: torch.Tensor
    """Position in `gather_RS`, flattened, of each token behind the beginning."""
    visible_1S: torch.Tensor
    """Mask over beginning and own tokens, of shape (1, 1, S, shared + S)."""


class SideBySide(NamedTuple):
    """A batch as one sequence."""

    ids_N: torch.Tensor
    positions_N: torch.Tensor
    """Of each token in its own record."""
    targets_N: torch.Tensor
    """The label of each token's successor; `IGNORED` where there is none."""
    layout: Layout
    spared: int
    """Tokens that were not laid out again."""


def records_of(inputs: dict[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Takes a batch apart into ids and labels of each record.

    Args:
        inputs: Padded on the right with `attention_mask`, or packed with `position_ids` that begin anew at each record.
    """
    ids_BT, labels_BT = inputs["input_ids"], inputs["labels"]
    positions_BT = inputs.get("position_ids")
    found = []
    for row in range(len(ids_BT)):
        if positions_BT is None:
            length = int(inputs["attention_mask"][row].sum())
            found.append((ids_BT[row, :length], labels_BT[row, :length]))
            continue
        starts = (positions_BT[row] == 0).nonzero().flatten().tolist()
        ends = [*starts[1:], ids_BT.shape[1]]
        found += [(ids_BT[row, a:b], labels_BT[row, a:b]) for a, b in zip(starts, ends, strict=True)]
    # What fills a packed row up looks like a record, but carries no loss.
    return [(ids, labels) for ids, labels in found if bool((labels != IGNORED).any())]


def common_beginning(records: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> int:
    """Counts the leading tokens that all records share and that carry no loss: the domain's system message.

    The last of them stays with its record: its state predicts the record's first own token.
    """
    least = min(len(ids) for ids, _ in records)
    ids_RT = torch.stack([ids[:least] for ids, _ in records])
    labels_RT = torch.stack([labels[:least] for _, labels in records])
    same_T = (ids_RT == ids_RT[:1]).all(dim=0) & (labels_RT == IGNORED).all(dim=0)
    shared = int(same_T.int().cumprod(dim=0).sum()) - 1
    return shared if shared >= _WORTH_SHARING and len(records) > 1 else 0


def lay_out(records: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> SideBySide:
    """Puts records side by side.

    Args:
        records: Ids and labels of each.
    """
    shared = common_beginning(records)
    own = [len(ids) - shared for ids, _ in records]
    longest = max(own)
    start, gathers, scatters, targets = shared, [], [], [torch.full((shared,), IGNORED)]
    for number, (length, (_, labels)) in enumerate(zip(own, records, strict=True)):
        gathers.append(torch.arange(longest).clamp(max=length - 1) + start)
        scatters.append(torch.arange(length) + number * longest)
        targets += [labels[shared + 1 :], torch.tensor([IGNORED])]
        start += length
    visible = torch.ones(longest, shared + longest, dtype=torch.bool).tril(diagonal=shared)
    return SideBySide(
        ids_N=torch.cat([records[0][0][:shared], *(ids[shared:] for ids, _ in records)]),
        positions_N=torch.cat([torch.arange(shared), *(torch.arange(shared, shared + length) for length in own)]),
        targets_N=torch.cat(targets),
        layout=Layout(shared, torch.stack(gathers), torch.cat(scatters), visible[None, None]),
        spared=shared * (len(records) - 1),
    )


def is_known(config: Any) -> bool:
    """Tells whether a base model's architecture is one of `ARCHITECTURES`."""
    return config.get_text_config().model_type in ARCHITECTURES


def prepare(causal: Any) -> None:
    """Gives the decoder our attention, where it passes `layout` on to it."""
    if is_known(causal.config):
        causal.set_attn_implementation(ATTENTION)


def is_suited(config: Any, longest: int) -> bool:
    """Tells whether a decoder could be given records side by side.

    Args:
        config: The base model's.
        longest: Tokens of the longest record; a sliding window below it would be passed over.
    """
    window = getattr(config.get_text_config(), "sliding_window", None) or longest
    return is_known(config) and window >= longest


def fits(config: Any, longest: int) -> bool:
    """Tells whether the decoder can be given records side by side, `prepare` having been called."""
    return config.get_text_config()._attn_implementation == ATTENTION and is_suited(config, longest)


def hidden_states(causal: Any, batch: SideBySide) -> torch.Tensor:
    """Runs the decoder over the sequence and returns its last states, of shape (N, hidden)."""
    # A mask of four dimensions is passed on as it is, so that none of N x N is made; `attend` has its own.
    no_mask = torch.empty(1, 1, 0, 0)
    states: torch.Tensor = causal.get_decoder()(
        input_ids=batch.ids_N[None],
        position_ids=batch.positions_N[None],
        attention_mask=no_mask,
        use_cache=False,
        layout=batch.layout,
    ).last_hidden_state
    return states[0]


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Lets each record look at the beginning and at itself. Query, key and value are of shape (1, heads, N, size).

    Returns:
        States of shape (1, N, heads, size), and no weights.
    """
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    shared, records = layout.shared, len(layout.gather_RS)
    own_key, own_value = _apart(key, layout), _apart(value, layout)
    parts = []
    if shared:
        first_key, first_value = key[:, :, :shared], value[:, :, :shared]
        first = _attention(
            query[:, :, :shared], first_key, first_value, scale=scaling, dropout_p=dropout, is_causal=True
        )
        parts.append(first.transpose(1, 2))
        own_key = torch.cat([first_key.expand(records, -1, -1, -1), own_key], dim=2)
        own_value = torch.cat([first_value.expand(records, -1, -1, -1), own_value], dim=2)
    own = _attention(
        _apart(query, layout), own_key, own_value, scale=scaling, dropout_p=dropout, attn_mask=layout.visible_1S
    )
    parts.append(own.transpose(1, 2).flatten(0, 1).index_select(0, layout.scatter_N)[None])
    return torch.cat(parts, dim=1) if shared else parts[0], None


def _apart(states: torch.Tensor, layout: Layout) -> torch.Tensor:
    """From one sequence, (1, heads, N, size), to padded records, (R, heads, S, size)."""
    picked = states[0].transpose(0, 1).index_select(0, layout.gather_RS.flatten())
    records, longest = layout.gather_RS.shape
    return picked.view(records, longest, *picked.shape[1:]).transpose(1, 2)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **settings: Any) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return scaled_dot_product_attention(query, key, value, **settings)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
