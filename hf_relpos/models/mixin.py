"""The class that turns a transformers model into one with relative positions.

``class RelPosBertForMaskedLM(RelPosMixin, BertForMaskedLM)``: no forward is copied. The mixin places encodings on the attention modules that
the host has built, takes the host's own positions away where asked, and routes attention to our backends.
"""

from typing import Any, ClassVar

from torch import nn
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from ..encodings.encoding import Encoding, SharedPart
from .architectures import architecture
from .loading import check_loaded, inherit_weight_conversions, plan_loading, readable_errors
from .neutral import position_weights
from .placement import place
from .publishing import PublishingMixin
from .routing import implementation_name


class EncodingInitializer:
    """Lets a model initialise encodings among its modules: transformers asks the nearest model around a module to do it."""

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (Encoding, SharedPart)):
            module.reset_parameters()
        else:
            super()._init_weights(module)  # type: ignore[misc]


class RelPosMixin(EncodingInitializer, PublishingMixin):
    """Left-hand base of every model class of this package.

    ``relpos_base_class``: our class of the base model inside a model with a head; ``relpos_stack_class``: of the model inside that one, in
    families where there is one.
    """

    relpos_base_class: ClassVar[type | None] = None
    relpos_stack_class: ClassVar[type | None] = None

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        if config.rel_pos is None:
            raise ValueError(f"{type(self).__name__} needs config.rel_pos, for example {{'type': 'none'}}")
        if config.absolute is None:
            config.absolute = "drop"
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        self.relpos_attach()

    def relpos_attach(self) -> None:
        """Place the encodings of ``self.config`` on the host that ``self`` already is."""
        model: Any = self
        base = model.base_model
        spec = architecture(model.config.model_type)
        if base is not self:
            _become(base, self.relpos_base_class)
        if spec.stack:
            _become(base.get_submodule(spec.stack), self.relpos_stack_class)
        place(base, model.config, spec)
        if model.config.absolute == "drop":
            known = list(self._keys_to_ignore_on_load_unexpected or [])
            self._keys_to_ignore_on_load_unexpected = known + position_weights(spec)
        model.post_init()

    _keys_to_ignore_on_load_unexpected: list[str] | None = None

    def check_before_saving(self) -> None:
        """Raise ValueError when ``config.rel_pos`` was edited: the encodings that the model has are still those it was made with."""
        model: Any = self
        placed = model.base_model._relpos_placed
        if model.config.rel_pos != placed:
            raise ValueError(
                f"config.rel_pos was changed to {model.config.rel_pos}, but the model computes {placed}; load it with rel_pos=... instead"
            )

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # the host looks for its attention classes in the source of the class's own file, where ours has none
        return True

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Our internal name for ``attn_implementation``; ValueError for one that would drop the relative positions."""
        return implementation_name(requested_attention)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        rel_pos: Any = None,
        absolute: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint: one of ours, one of transformers 4 with relative positions, or ordinary weights.

        ``rel_pos`` and ``absolute`` ("keep" or "drop") are required for ordinary weights, whose encoding starts freshly initialised; a
        checkpoint that has an encoding needs neither, and is given another one when ``rel_pos`` is passed. Other arguments are those
        of transformers' ``from_pretrained``.

        Raises ValueError when one of the two is missing or wrong, or the encoding's weights and the config disagree; OSError when the
        weights cannot be read.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        inherit_weight_conversions(cls)
        with readable_errors(pretrained_model_name_or_path):
            plan = plan_loading(cls, pretrained_model_name_or_path, rel_pos, absolute, kwargs)
            model, info = super().from_pretrained(  # type: ignore[misc]
                pretrained_model_name_or_path, *args, config=plan.config, output_loading_info=True, **plan.kwargs
            )
        check_loaded(plan, model, info)
        return (model, info) if wants_info else model


def _become(model: Any, cls: Any) -> None:
    """Make a host's inner model one of ours, and known to transformers' capture of hidden states and attention weights, which goes by
    the name of the class that was constructed."""
    model.__class__ = cls
    _CAN_RECORD_REGISTRY[model] = model._can_record_outputs
