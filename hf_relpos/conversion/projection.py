"""From what was measured to the parameters of encodings: which parameters bring attention nearest to the original's.

An encoding is asked for its table over distance by running it; nothing here knows a method. Three ways, by what the table turns out to be:

* the parameters of one head enter it linearly (free tables, buckets, sinusoids): one linear system for each head, solved in float64;
* it depends on distance, in whatever way: LBFGS in float64 on the measured form, from several starts at first;
* scores depend on content: LBFGS on the KL divergence itself, on the pairs of some texts.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..encodings.composition import contribute
from ..encodings.encoding import Encoding, SharedPart
from ..encodings.inputs import Contribution, EncodingInputs
from ..encodings.positions import Positions
from ..encodings.terms import DistanceTable, OnHeads, ScoreTerm
from .distance_form import DistanceForm
from .layerwise import recompute, scores_of

# how much a change of the table is held back where it differs from the change at the next distance, against the mean curvature
DAMPING = 1e-3
STARTS = 3
ITERATIONS = 50
# how much later steps are held back at first, against the attention at each distance: the KL divergence is not as round as the least squares
SHORTER = 0.1
# queries of each text, consecutive, on which content-dependent encodings are fitted
BLOCK = 64


def leaves(parts: Sequence[nn.Module]) -> list[nn.Module]:
    """The encodings and shared parts in ``parts``, those inside a composition too."""
    return [
        leaf
        for part in parts
        for leaf in (leaves(list(part.members)) if hasattr(part, "members") else [part])  # type: ignore[arg-type]
    ]


def has_parameters(part: nn.Module) -> bool:
    """Whether there is anything to fit in ``part``."""
    return next(part.parameters(), None) is not None


def objections(parts: Sequence[nn.Module]) -> list[str]:
    """Why ``parts``, which act in one layer, cannot be fitted to scores; nothing when they can."""
    found = []
    with_parameters = [part for part in leaves(parts) if has_parameters(part)]
    for part in with_parameters:
        if isinstance(part, Encoding) and type(part).value_terms is not Encoding.value_terms and _adds_values(part):
            found.append(f"{part.name!r} adds learned vectors to the values, of which scores tell nothing")
        if part.needs & {"relation_ids"}:  # type: ignore[operator]
            found.append(f"{getattr(part, 'name', '?')!r} reads relations that raw text does not have")
        if getattr(part, "adds_to_input", False):
            found.append(f"{part.name!r} adds to the input, of which scores tell nothing")
    return found


def _adds_values(part: Encoding) -> bool:
    content = torch.zeros(1, part.host.num_heads, 1, part.host.head_dim)
    inputs = EncodingInputs(content, content, Positions.consecutive(1, 1), 1.0)
    try:
        return bool(part.value_terms(inputs))
    except (ValueError, TypeError):
        return True


def distance_table(parts: Sequence[nn.Module], size: int) -> Tensor | None:
    """The sum over ``parts`` of what they add at distances ``1 - size .. size - 1``, ``[H, N]`` in their precision; None when that is not all they do."""
    encodings: list[Any] = [part for part in leaves(parts) if has_parameters(part)]
    if not encodings or any(not isinstance(part, Encoding) or part.needs or part.state_width for part in encodings):
        return None
    host, heads = encodings[0].host, encodings[0].attention_heads
    dtype = next(encodings[0].parameters()).dtype
    content = torch.zeros(1, heads, size, host.head_dim, dtype=dtype)
    inputs = EncodingInputs(content, content, Positions.consecutive(size, size), 1.0)
    total = contribute(encodings, inputs, Contribution(content, content, 1.0))
    terms_only = total.query is content and total.key is content and not total.row_maps and not total.value_terms
    if not terms_only or not total.score_terms or not all(map(_is_table, total.score_terms)):
        return None
    distances = torch.arange(1 - size, size)
    head = torch.arange(heads)[:, None]
    i, j = distances.clamp(min=0)[None], (-distances).clamp(min=0)[None]
    return torch.stack([term.at(torch.zeros_like(head), head, i, j) for term in total.score_terms]).sum(0)


def _is_table(term: ScoreTerm) -> bool:
    return isinstance(term.term if isinstance(term, OnHeads) else term, DistanceTable)


@dataclass(frozen=True)
class ContentSample:
    """Some texts in one layer: what its encodings get, the queries that are looked at, and the log of their attention in the original ``[B, H, rows, Tk]``."""

    inputs: EncodingInputs
    rows: slice
    target: Tensor
    causal: bool


class Problem:
    """Parameters of ``parts`` (by layer) that are to be fitted together: one layer's, or all that share some."""

    def __init__(self, parts: Sequence[Sequence[nn.Module]]):
        self.parts = [list(some) for some in parts]
        unique = {id(parameter): parameter for some in self.parts for part in some for parameter in part.parameters()}
        self.parameters: list[nn.Parameter] = list(unique.values())  # type: ignore[arg-type]
        self._lift: _Lifted | None = None
        # the parameters with the lowest divergence so far and what was measured there; how much the next step of each head is held back
        self._best: tuple[Tensor, list[DistanceForm]] | None = None
        self._hold = torch.zeros(0)

    def _lifted(self, size: int) -> "_Lifted":
        if self._lift is None:
            self._lift = _Lifted(self, size)
        self._lift.read()
        return self._lift

    @torch.no_grad()
    def tables(self, size: int) -> Tensor | None:
        """What the encodings add at each distance, ``[layers, H, N]``; None when they do more than that."""
        found = [distance_table(some, size) for some in self.parts]
        return None if any(table is None for table in found) else torch.stack(found)  # type: ignore[arg-type]

    def clear(self, size: int) -> None:
        """Set the parameters to zero where the table is linear in them, so that nothing random is left where text says nothing."""
        if self._lifted(size).solvable() is not None:
            with torch.no_grad():
                for parameter in self.parameters:
                    parameter.zero_()

    def step(self, forms: Sequence[DistanceForm], *, damping: float, last: bool = False) -> float:
        """Take the step that the ``forms`` of the layers, measured at the present parameters, ask for; return the KL divergence that is reached for certain.

        A step after which the divergence turned out larger is taken back, by head where heads have parameters of their own, and repeated from there,
        shorter. ``last``: only take back, take no step.
        """
        lift = self._lifted(forms[0].size)
        jacobians = lift.solvable()
        if lift.single and len(forms) > 1:
            merged = forms[0]
            for form in forms[1:]:
                merged = merged.merged(form)
            forms = [merged]
        heads = len(forms[0].divergence)
        first = self._best is None
        if self._best is None:
            self._hold = torch.zeros(heads)
        else:
            vector, before = self._best
            if jacobians is not None:
                worse = forms[0].divergence > before[0].divergence
                for head in worse.nonzero()[:, 0].tolist():
                    forms[0].head_from(before[0], head)
                    place = jacobians[head][0]
                    lift.put(place, vector[place])
            else:
                total, least = (float(sum(form.divergence.sum() for form in some)) for some in (forms, before))
                worse = torch.full((heads,), total > least)
                if total > least:
                    lift.load(vector)
                    forms = before
            self._hold = torch.where(worse, self._hold.clamp(min=SHORTER / 8) * 8, self._hold / 2)
        self._best = lift.vector(), list(forms)
        if not last:
            if jacobians is not None:
                lift.solve(forms[0], jacobians, damping, self._hold)
            else:
                lift.descend(forms, self._hold, starts=STARTS if first else 1)
            if first:
                self._hold = self._hold + SHORTER
        lift.write_back()
        return float(sum(form.divergence.sum() / form.rows for form in forms)) / heads / len(forms)

    def fit_content(self, samples: Sequence[Sequence[ContentSample]], steps: int) -> None:
        """Descend along the KL divergence of the ``samples`` of each layer; RuntimeError when parameters do not move scores."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.LBFGS(self.parameters, max_iter=steps, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            total = 0.0
            for parts, texts in zip(self.parts, samples, strict=True):
                count = sum(text.target[..., 0].numel() for text in texts)
                for text in texts:
                    scores = scores_of(recompute(parts, text.inputs), text.rows, causal=text.causal)
                    value = _divergence(text.target, scores) / count
                    value.backward()
                    total += value.item()
            return torch.tensor(total)

        with torch.enable_grad():
            optimizer.step(loss)  # type: ignore[arg-type]
        if all(parameter.grad is None or not parameter.grad.any() for parameter in self.parameters):
            raise RuntimeError("the parameters of the encoding do not move attention; it cannot be fitted")
        for parameter in self.parameters:
            parameter.grad = None
            if not bool(parameter.isfinite().all()):
                raise RuntimeError("the fit of the encoding ran away: its parameters are not finite")


def _divergence(target: Tensor, scores: Tensor) -> Tensor:
    hidden = scores == -torch.inf
    target = target.masked_fill(hidden, -torch.inf).log_softmax(-1)
    gap = (target - scores.log_softmax(-1)).masked_fill(hidden | (target == -torch.inf), 0.0)
    return (target.exp() * gap).sum()


class _Lifted:
    """A float64 copy of a problem, with its tables over distance as a function of one flat vector of parameters."""

    def __init__(self, problem: Problem, size: int):
        self.problem, self.size = problem, size
        memo: dict[int, Any] = {}
        self.parts = [
            [copy.deepcopy(part, memo).double() for part in leaves(some) if has_parameters(part)]
            for some in problem.parts
        ]
        self.parameters: list[nn.Parameter] = [memo[id(parameter)] for parameter in problem.parameters]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self._asked = False
        self._derivatives: list[tuple[Tensor, Tensor]] | None = None
        # all layers have the same encodings, and so the same table
        self.single = all(list(map(id, some)) == list(map(id, self.parts[0])) for some in self.parts)

    def tables(self) -> list[Tensor]:
        """One table ``[H, N]`` for each layer."""
        if self.single:
            return [self._table(self.parts[0])] * len(self.parts)
        return [self._table(some) for some in self.parts]

    def _table(self, some: Sequence[nn.Module]) -> Tensor:
        table = distance_table(some, self.size)
        assert table is not None, "asked before for tables"
        return table

    @torch.no_grad()
    def read(self) -> None:
        """Take the problem's parameters as they are now."""
        for mine, theirs in zip(self.parameters, self.problem.parameters, strict=True):
            mine.copy_(theirs)

    def solvable(self) -> list[tuple[Tensor, Tensor]] | None:
        """For each head the places of its parameters in the flat vector and the table's derivative by them ``[N, P]``; None when heads share parameters,
        layers have others, or the table is not linear in them."""
        if not self._asked:
            self._derivatives, self._asked = self._differentiate(), True
        return self._derivatives

    def _differentiate(self) -> list[tuple[Tensor, Tensor]] | None:
        if not self.single:
            return None
        with torch.enable_grad():
            table = self.tables()[0]
            if not bool(table.isfinite().all()):
                return None
            heads, columns = table.shape
            owners = []
            probe = torch.randn(columns, dtype=table.dtype, generator=torch.Generator().manual_seed(0))
            for head in range(heads):
                seed = torch.zeros_like(table)
                seed[head] = probe
                owners.append(self._vjp(table, seed) != 0)
            if bool((torch.stack(owners).sum(0) > 1).any()):
                return None
            rows = []
            for some in torch.eye(columns, dtype=table.dtype).split(128):
                seeds = some[:, None, :].expand(-1, heads, -1)
                found = torch.autograd.grad(
                    table, self.parameters, seeds, retain_graph=True, is_grads_batched=True, allow_unused=True
                )
                rows.append(_flat(found, self.parameters, len(some)))
        jacobian = torch.cat(rows)
        places = [owned.nonzero()[:, 0] for owned in owners]
        derivatives = [(place, jacobian[:, place]) for place in places]
        return derivatives if self._is_linear(table.detach(), derivatives) else None

    def _vjp(self, table: Tensor, seed: Tensor) -> Tensor:
        found = torch.autograd.grad(table, self.parameters, seed, retain_graph=True, allow_unused=True)
        return _flat(tuple(None if one is None else one[None] for one in found), self.parameters, 1)[0]

    @torch.no_grad()
    def _is_linear(self, table: Tensor, derivatives: list[tuple[Tensor, Tensor]]) -> bool:
        start = self.vector()
        change = torch.randn(start.shape, dtype=start.dtype, generator=torch.Generator().manual_seed(1))
        self.load(start + change)
        moved = self.tables()[0] - table
        self.load(start)
        predicted = torch.stack([derivative @ change[place] for place, derivative in derivatives])
        return bool(torch.allclose(moved, predicted, rtol=1e-6, atol=1e-6))

    def vector(self) -> Tensor:
        """The parameters, flat."""
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters])

    @torch.no_grad()
    def load(self, vector: Tensor) -> None:
        """Set the parameters."""
        for parameter, values in zip(
            self.parameters, vector.split([parameter.numel() for parameter in self.parameters]), strict=True
        ):
            parameter.copy_(values.view_as(parameter))

    @torch.no_grad()
    def write_back(self) -> None:
        """Give the problem's own parameters the values found here."""
        for mine, theirs in zip(self.parameters, self.problem.parameters, strict=True):
            if not bool(mine.isfinite().all()):
                raise RuntimeError("the fit of the encoding ran away: its parameters are not finite")
            theirs.copy_(mine)

    @torch.no_grad()
    def put(self, place: Tensor, values: Tensor) -> None:
        """Set some of the parameters."""
        vector = self.vector()
        vector[place] = values
        self.load(vector)

    @torch.no_grad()
    def solve(self, form: DistanceForm, derivatives: list[tuple[Tensor, Tensor]], damping: float, hold: Tensor) -> None:
        """The exact minimum, with changes damped where neighbouring distances change differently and held back by ``hold`` ``[H]``."""
        vector = self.vector()
        for head, (place, derivative) in enumerate(derivatives):
            if not len(place):
                continue
            curvature = form.damped(head, damping)
            curvature.diagonal().add_(form.mass[head], alpha=float(hold[head]))
            scale = curvature.diagonal().mean().clamp(min=1e-30)
            # tables and buckets have a number or two in each row
            sparse = derivative.T.to_sparse()
            system = sparse @ (sparse @ curvature).T
            # constants do not matter to the softmax, and some parameters to nothing: both stay where they are
            system.diagonal().add_(1e-7 * scale)
            vector[place] += torch.linalg.solve(system, sparse @ form.slope(head))
        self.load(vector)

    def descend(self, forms: Sequence[DistanceForm], hold: Tensor, *, starts: int) -> None:
        """LBFGS on the sum of the forms, from the present parameters and from others drawn as the encodings draw theirs; the lowest wins."""
        with torch.no_grad():
            present = [table.clone() for table in self.tables()]
        loss = self._loss_of(forms, present, hold)
        scale = 1.0 / max(1, sum(form.rows for form in forms))
        best: tuple[float, Tensor] = (0.0, self.vector())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for start in range(starts):
                if start:
                    for part in {id(part): part for some in self.parts for part in some}.values():
                        if isinstance(part, (Encoding, SharedPart)):
                            with torch.no_grad():
                                part.reset_parameters()
                found = self._minimise(loss, scale)
                if found[0] < best[0]:
                    best = found
        self.load(best[1])

    def _loss_of(self, forms: Sequence[DistanceForm], present: list[Tensor], hold: Tensor) -> Callable[[], Tensor]:
        slopes = {id(form): torch.stack([form.slope(head) for head in range(len(form.mass))]) for form in forms}
        bends = {id(form): torch.stack([form.bend(head) for head in range(len(form.mass))]) for form in forms}
        for form in forms:
            bends[id(form)].diagonal(dim1=1, dim2=2).add_(hold[:, None] * form.mass)

        def loss() -> Tensor:
            total = torch.zeros((), dtype=torch.float64)
            for table, old, form in zip(self.tables(), present, forms, strict=True):
                # where an encoding hides keys there is nothing to change
                change = torch.where(old.isfinite(), table - old, 0.0)
                bent = (bends[id(form)] @ change[..., None])[..., 0]
                total = total + (change * (bent / 2 - slopes[id(form)])).sum()
            return total

        return loss

    def _minimise(self, loss: Callable[[], Tensor], scale: float) -> tuple[float, Tensor]:
        optimizer = torch.optim.LBFGS(
            self.parameters,
            max_iter=ITERATIONS,
            history_size=20,
            tolerance_grad=1e-9,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss() * scale
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[arg-type]
        with torch.no_grad():
            value = float(loss())
        return (value if value == value else float("inf")), self.vector()


def _flat(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor], count: int) -> Tensor:
    return torch.cat(
        [
            torch.zeros(count, parameter.numel(), dtype=parameter.dtype) if one is None else one.reshape(count, -1)
            for one, parameter in zip(gradients, parameters, strict=True)
        ],
        dim=1,
    )
