"""How far one layer's attention is from another's, as a function of a table over distance: measured in streaming sums.

Let a query's attention be ``P`` in the original and ``P'`` in the converted model, whose scores contain the table ``t[h, n]``, ``n = i - j``. For a change
``x`` of the table, to second order,

    KL(P | P') (t + x) = KL(P | P') (t) - r.x + x.A.x / 2

summed over queries, with ``r[n]`` the sum of ``P - P'`` over the pairs at ``n`` and ``A`` the covariance, by distance, of attention M. At the start, where the
two may be far apart, ``r = Cov_M(., d)`` gives the least squares of the score differences ``d``. M is the mean of P and P', which keeps steps bounded where one of
the two has next to nothing. All this sees differences within a row alone, as the softmax does. ``r`` is summed over all queries, ``A`` over some of each text.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# queries of each text whose covariance is summed
ROWS = 128


def by_distance(pairs: Tensor) -> Tensor:
    """Sums of ``pairs`` ``[H, T, T]`` over all pairs at each distance ``i - j``, ascending from ``1 - T``: ``[H, 2T - 1]``."""
    size = pairs.shape[1]
    # each row starts one column later than the one above it, from the last to the first, so columns are distances
    padded = torch.nn.functional.pad(pairs.flip(-1), (0, size))
    return padded.flatten(1)[:, : size * (2 * size - 1)].unflatten(1, (size, 2 * size - 1)).sum(1)


@dataclass
class DistanceForm:
    """Sums over texts for the heads of one layer; ``size`` T: distances ``1 - T .. T - 1`` have a column each.

    ``gradient`` ``[H, N]`` is r, ``curvature`` ``[H, N, N]`` A over some queries of each text; ``mass`` and ``seen`` ``[H, N]`` are the attention at each distance of all
    queries and of these. ``count``, ``total`` and ``square`` ``[H, N]`` are the number of pairs at each distance, the
    sum of their score differences and of its square, rows centred and unweighted. ``rows``: queries; ``divergence``, ``variance`` and ``spread`` ``[H]`` are sums
    over queries of ``KL(P | P')`` and of the variance of the score differences under P and under M.
    """

    size: int
    gradient: Tensor
    curvature: Tensor
    mass: Tensor
    seen: Tensor
    count: Tensor
    total: Tensor
    square: Tensor
    divergence: Tensor
    variance: Tensor
    spread: Tensor
    rows: int = 0

    @classmethod
    def empty(cls, heads: int, size: int, *, curvature: bool = True) -> "DistanceForm":
        """No text yet; without ``curvature`` only the numbers of a whole layer are summed."""
        columns = 2 * size - 1
        width = columns if curvature else 0

        def columns_of_heads() -> Tensor:
            return torch.zeros(heads, columns, dtype=torch.float64)

        def of_heads() -> Tensor:
            return torch.zeros(heads, dtype=torch.float64)

        return cls(
            size,
            gradient=columns_of_heads(),
            curvature=torch.zeros(heads, width, width),
            mass=columns_of_heads(),
            seen=columns_of_heads(),
            count=columns_of_heads(),
            total=columns_of_heads(),
            square=columns_of_heads(),
            divergence=of_heads(),
            variance=of_heads(),
            spread=of_heads(),
        )

    def add(self, original: Tensor, converted: Tensor, *, near: bool, generator: torch.Generator | None = None) -> None:
        """Add texts with scores ``original`` and ``converted`` ``[B, H, T, T]``, -inf where a key is hidden; ``near``: use the sums of the KL itself.

        Keys that the converted model hides from a query are left out of its original attention.
        """
        hidden = converted == -torch.inf
        hides = bool(hidden.any())
        if hides:
            original = original.masked_fill(hidden, -torch.inf)
        target, result = original.log_softmax(-1), converted.log_softmax(-1)
        weights = target.exp()
        gap = target - result
        if hides:
            gap = gap.masked_fill_(hidden | (target == -torch.inf), 0.0)
        length = original.shape[2]
        self.rows += original.shape[0] * length
        mean = (weights * gap).sum(-1, keepdim=True)
        self.divergence += _heads(mean[..., 0])
        centred = gap - mean
        weighted = weights * centred
        self.variance += _heads((weighted * centred).sum(-1))
        if not self.curvature.shape[1]:
            return
        if not near:
            seen = (~hidden).sum(-1, keepdim=True).clamp(min=1)
            plain = gap - gap.sum(-1, keepdim=True) / seen
            if hides:
                plain = plain.masked_fill_(hidden, 0.0)
            self._put(self.count, (~hidden).sum(0).to(gap.dtype))
            self._put(self.total, plain.sum(0))
            self._put(self.square, plain.square_().sum(0))
        # between the two, so that a step stays bounded where one of them has next to nothing
        other = result.exp()
        bending = (weights + other).mul_(0.5)
        if near:
            self._put(self.gradient, (weights - other).sum(0))
        else:
            middle = gap - (bending * gap).sum(-1, keepdim=True)
            self._put(self.gradient, (bending * middle).sum(0))
            self.spread += _heads((bending * middle.square()).sum(-1))
        self._put(self.mass, bending.sum(0))
        picked = torch.randperm(length, generator=generator)[:ROWS].sort().values
        columns = picked[:, None] - torch.arange(length) + (length - 1)
        rows = bending[:, :, picked].transpose(0, 1)
        spread = rows.new_zeros(*rows.shape[:3], 2 * length - 1)
        flat = spread.scatter_(-1, columns.expand_as(rows), rows).flatten(1, 2).to(self.curvature.dtype)
        first = self.size - length
        block = self.curvature[:, first : first + 2 * length - 1, first : first + 2 * length - 1]
        share = length / len(picked)
        block.baddbmm_(flat.transpose(1, 2), flat, alpha=-share)
        mass = flat.sum(1) * share
        block.diagonal(dim1=1, dim2=2).add_(mass)
        self.seen[:, first : first + 2 * length - 1] += mass.double()

    def _put(self, sums: Tensor, pairs: Tensor) -> None:
        """Add ``pairs`` ``[H, T, T]`` to ``sums`` by distance."""
        length = pairs.shape[-1]
        first = self.size - length
        sums[:, first : first + 2 * length - 1] += by_distance(pairs).double()

    def merged(self, other: "DistanceForm") -> "DistanceForm":
        """The form of the sum of both."""
        return DistanceForm(
            self.size,
            self.gradient + other.gradient,
            self.curvature + other.curvature,
            self.mass + other.mass,
            self.seen + other.seen,
            self.count + other.count,
            self.total + other.total,
            self.square + other.square,
            self.divergence + other.divergence,
            self.variance + other.variance,
            self.spread + other.spread,
            self.rows + other.rows,
        )

    def slope(self, head: int) -> Tensor:
        """r of one head ``[N]``; a constant table moves nothing, so its sum is zero but for rounding, which is taken out."""
        return self.gradient[head] - self.gradient[head].mean()

    def bend(self, head: int) -> Tensor:
        """A of one head ``[N, N]``: that of some queries, brought to the attention that all queries have at each distance, so that no step is too large.

        Its rows sum to zero whatever is done to the other elements, so that constants stay free.
        """
        mass, seen = self.mass[head], self.seen[head]
        factor = (mass / seen.clamp(min=1e-30)).sqrt().masked_fill(seen == 0, 0.0)
        found = self.curvature[head].double() * factor[:, None] * factor
        unseen = mass.masked_fill(seen > 0, 0.0)
        tie = unseen[:, None] * mass / mass.sum().clamp(min=1e-30)
        found -= tie + tie.T
        found.fill_diagonal_(0.0)
        found.diagonal().sub_(found.sum(1))
        return found

    def head_from(self, other: "DistanceForm", head: int) -> None:
        """Take what a step needs of one head from another form."""
        for name in ("gradient", "curvature", "mass", "seen", "divergence"):
            getattr(self, name)[head] = getattr(other, name)[head]

    def damped(self, head: int, damping: float) -> Tensor:
        """The same with ``damping`` times the mean of its diagonal on the squared differences of neighbouring columns."""
        found = self.bend(head)
        weight = damping * found.diagonal().mean()
        columns = torch.arange(len(found) - 1)
        found.diagonal()[:-1] += weight
        found.diagonal()[1:] += weight
        found[columns, columns + 1] -= weight
        found[columns + 1, columns] -= weight
        return found

    def mean_table(self) -> Tensor:
        """The mean score difference at each distance, ``[H, N]``; NaN where no pair was seen."""
        return self.total / self.count.masked_fill(self.count == 0, torch.nan)

    def table_variance(self) -> Tensor:
        """The variance of the score differences at each distance, ``[H, N]``; NaN where no pair was seen."""
        return self.square / self.count.masked_fill(self.count == 0, torch.nan) - self.mean_table().square()


def _heads(per_query: Tensor) -> Tensor:
    return per_query.sum(dim=(0, 2)).double()
