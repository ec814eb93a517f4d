"""Which encoding a model should get: several are fitted on less text and ranked."""

from collections.abc import Callable
from typing import Any

from ..encodings.build import fitting_value
from ..encodings.options import Host
from ..encodings.registry import registered_encodings
from .fit_report import Candidate
from .fitting import fit_model
from .layerwise import Progress
from .projection import distance_table, has_parameters
from .similarity import compare
from .texts import FittingTexts

AUTO = "auto"
PASSES = 2


def candidates(host: Host) -> list[Any]:
    """Every method whose scores depend on distance alone and that has something to fit for ``host``, as ``rel_pos`` values."""
    found = []
    for name, cls in registered_encodings().items():
        value = fitting_value({"type": name})
        try:
            encoding = cls(cls.Options.from_dict(name, {key: one for key, one in value.items() if key != "type"}), host)
        except ValueError:
            # it is not defined for such a host
            continue
        if has_parameters(encoding) and distance_table([encoding], 4) is not None:
            found.append(value)
    return found


def advise(
    original: Any,
    load: Callable[[Any], Any],
    host: Host,
    texts: FittingTexts,
    progress: Progress,
) -> list[Candidate]:
    """Fit the candidates on ``texts``, by ``load`` given a ``rel_pos`` each as a fresh model, and rank them, best first.

    The rank goes by the mean of the pooled cosines to the original at the lengths it was fitted at and at 2, 4 and 8 times the longest.
    """
    tried = []
    for value in candidates(host):
        model = load(value)
        fit = fit_model(original, model, texts, passes=PASSES, progress=lambda message: None)
        similarity = compare(original, model, texts)
        cosines = [*similarity.pooled.values(), *similarity.beyond.values()]
        shares = [share for layer in fit.layers for share in layer.explained]
        tried.append(
            Candidate(model.config.rel_pos, sum(shares) / len(shares), similarity, sum(cosines) / len(cosines))
        )
        progress(f"tried {value['type']}: mean cosine {tried[-1].rank_value:.3f} ({fit.seconds:.0f} s)")
    return sorted(tried, key=lambda one: one.rank_value, reverse=True)
