"""Candidates as a trie, so that a shared beginning is computed once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class CandidateTrie:
    """The candidates of a question, or of a whole benchmark, as arrays; built once and shared by all questions.

    A *state* is a point after which some candidate goes on: the root (what precedes every candidate) and the inner
    nodes. States are numbered in preorder, so a subtree is the run `state .. state_stop[state]`. An *edge* is one
    token after a state; the edges of a state lie side by side. Scoring needs the hidden state of every state, and of
    no leaf.

    Attributes:
        state_token: token that leads to the state, 0 for the root, `[states]`.
        state_depth: tokens from the root, `[states]`.
        state_stop: one past the last state of the subtree, `[states]`.
        edge_start: first edge of each state, and the number of edges at the end, `[states + 1]`.
        edge_token: token of each edge, `[edges]`.
        paths: edges of each candidate in the order given, padded with the number of edges, `[candidates, longest]`.
        lengths: tokens of each candidate, the end token included where there is one, `[candidates]`.
    """

    state_token: Tensor
    state_depth: Tensor
    state_stop: Tensor
    edge_start: Tensor
    edge_token: Tensor
    paths: Tensor
    lengths: Tensor

    @classmethod
    def build(cls, candidates: Sequence[Sequence[int]], *, end_token: int | None = None) -> "CandidateTrie":
        """Build the trie of tokenised candidates.

        Args:
            candidates: token ids of each candidate, without begin or end token; duplicates are allowed.
            end_token: id appended to every candidate, so that ending there is scored too; None scores no end.

        Raises:
            ValueError: there is no candidate, one is empty, or one already ends in the end token.
        """
        _check(candidates, end_token)
        end = [] if end_token is None else [end_token]
        rows = [[*candidate, *end] for candidate in candidates]
        lengths = np.array([len(row) for row in rows])
        table = np.full((len(rows), lengths.max()), -1)
        table[np.arange(lengths.max()) < lengths[:, None]] = np.concatenate(rows)
        # Sorted rows meet the nodes in preorder.
        order = np.lexsort(table.T[::-1])
        return cls._from_nodes(_number_nodes(table[order]), table[order], order, lengths)

    @classmethod
    def _from_nodes(cls, nodes: Integers, table: Integers, order: Integers, lengths: Integers) -> "CandidateTrie":
        count = int(nodes.max())
        _, first = np.unique(nodes[nodes > 0], return_index=True)
        row, column = (index[first] for index in np.nonzero(nodes))
        parent = np.where(column > 0, nodes[row, column - 1], 0)
        token, depth = np.append(0, table[row, column]), np.append(0, column + 1)

        inner = np.zeros(count + 1, dtype=bool)
        inner[parent] = True
        inner_before = np.append(0, np.cumsum(inner))
        by_parent = np.argsort(parent, kind="stable")
        edge_of_node = np.full(count + 1, count)
        edge_of_node[by_parent + 1] = np.arange(count)
        paths = np.empty_like(nodes)
        paths[order] = edge_of_node[nodes]
        fields = (
            token[inner],
            depth[inner],
            inner_before[_subtree_stop(nodes)[inner]],
            np.append(0, np.cumsum(np.bincount(parent, minlength=count + 1)[inner])),
            token[1:][by_parent],
            paths,
            lengths,
        )
        return cls(*(torch.from_numpy(np.ascontiguousarray(field)) for field in fields))

    @property
    def states(self) -> int:
        """Number of states, the root included: the positions an encoder-decoder has to compute."""
        return len(self.state_token)

    @property
    def edges(self) -> int:
        """Number of distinct beginnings of candidates."""
        return len(self.edge_token)

    @property
    def longest(self) -> int:
        """Tokens of the longest candidate."""
        return self.paths.shape[1]

    def runs(self, width: int, first: int) -> Iterator[tuple[Tensor, int]]:
        """Cut the states from `first` on into runs that can be computed one after the other.

        Args:
            width: most states a run may hold; a run always holds at least one state that no run before it had.
            first: 0, or 1 where the root has been computed with the prefix.

        Yields:
            The states of a run `[states of the run]`, in preorder, and how many at its head are ancestors that an
            earlier run held already.
        """
        states = torch.arange(self.states)
        start = first
        while start < self.states:
            ancestors = states[first:start][self.state_stop[first:start] > start]
            stop = min(self.states, start + max(1, width - len(ancestors)))
            yield torch.cat([ancestors, states[start:stop]]), len(ancestors)
            start = stop


def _check(candidates: Sequence[Sequence[int]], end_token: int | None) -> None:
    if not candidates:
        raise ValueError("there are no candidates to score")
    for index, candidate in enumerate(candidates):
        if len(candidate) == 0:
            raise ValueError(f"candidate {index} is empty: every candidate needs at least one token")
        if min(candidate) < 0:
            raise ValueError(f"candidate {index} has a negative token id: {min(candidate)}")
        if end_token is not None and candidate[-1] == end_token:
            raise ValueError(
                f"candidate {index} already ends in the end token {end_token}: give candidates without it "
                "(tokenizers of encoder-decoders add it unless add_special_tokens=False)"
            )


def _number_nodes(table: Integers) -> Integers:
    """Number the distinct beginnings of sorted rows from 1 in preorder, 0 for padding: `[candidates, longest]`."""
    fresh = np.ones(table.shape, dtype=bool)
    fresh[1:] = np.logical_or.accumulate(table[1:] != table[:-1], axis=1)
    fresh &= table >= 0
    nodes = np.where(fresh, np.cumsum(fresh).reshape(fresh.shape), 0)
    return np.where(table >= 0, np.maximum.accumulate(nodes, axis=0), 0)


def _subtree_stop(nodes: Integers) -> Integers:
    """One past the last node of each node's subtree, the root's first: `[nodes + 1]`."""
    last = np.zeros(int(nodes.max()) + 1, dtype=np.int64)
    # A row's largest number is its last node, and every subtree ends in some row's last node.
    np.maximum.at(last, nodes, nodes.max(axis=1, keepdims=True))
    last[0] = len(last) - 1
    return last + 1
