"""The two fields that a config of this package adds to its host's, and how foreign configs become one."""

from dataclasses import dataclass
from typing import Any

from transformers import logging

from ..encodings.build import legacy_encoding, parse_rel_pos
from .first_use import FirstUse
from .neutral import check_absolute

logger = logging.get_logger(__name__)


@dataclass(kw_only=True)
class RelPosConfigMixin(FirstUse):
    """Config fields of a model with relative positions.

    ``rel_pos``: the encoding, ``{"type": name, **options}``, or a list of such dicts, whose terms add up. ``absolute``: "keep" or "drop" the
    host's own positions; a model made from scratch drops them unless told otherwise.

    A config saved by transformers 4 with a ``position_embedding_type`` that this package knows becomes that encoding with the host's
    positions dropped: transformers 4 did not add its absolute table there.
    """

    rel_pos: dict | list | None = None
    absolute: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        legacy = legacy_encoding(kwargs.get("position_embedding_type"))
        if legacy is not None:
            kwargs.pop("position_embedding_type")
            if self.rel_pos is None:
                self.rel_pos, self.absolute = {"type": legacy.name}, "drop"
        if isinstance(self.rel_pos, str):
            self.rel_pos = {"type": self.rel_pos}
        if self.rel_pos is not None:
            parse_rel_pos(self.rel_pos)
        if self.absolute is not None:
            check_absolute(self.absolute)
        super().__post_init__(**kwargs)  # type: ignore[misc]

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As the host's, but a config of the host's own type is taken as ours; one of another type is refused with a ValueError."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        stored, own = config_dict.get("model_type"), cls.model_type  # type: ignore[attr-defined]
        if stored is not None and stored != own:
            if stored != own.removeprefix("relpos_"):
                raise ValueError(
                    f"{pretrained_model_name_or_path} holds a model of type {stored!r}, which {cls.__name__} cannot load"
                )
            config_dict = {
                key: value
                for key, value in config_dict.items()
                if key not in ("model_type", "architectures", "auto_map")
            }
        return config_dict, kwargs

    def validate_output_attentions(self) -> None:
        """Nothing to object to: every backend choice can give attention weights when asked."""

    @property
    def output_attentions(self) -> bool | None:
        """Whether models return attention weights."""
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: bool | None) -> None:
        self._output_attentions = value
