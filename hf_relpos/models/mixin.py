"""The class that turns a transformers model into one with relative positions.

``class RelPosBertForMaskedLM(RelPosMixin, BertForMaskedLM)``: no forward is copied. The mixin places encodings on the attention modules that
the host has built, takes the host's own positions away where asked, and routes attention to our backends.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import HfApi
from torch import nn
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from ..encodings.encoding import Encoding
from .architectures import architecture
from .loading import check_loaded, inherit_weight_conversions, plan_loading, readable_errors
from .neutral import position_weights
from .placement import place
from .routing import implementation_name


class EncodingInitializer:
    """Lets a model initialise encodings among its modules: transformers asks the nearest model around a module to do it."""

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Encoding):
            module.reset_parameters()
        else:
            super()._init_weights(module)  # type: ignore[misc]


class RelPosMixin(EncodingInitializer):
    """Left-hand base of every model class of this package.

    ``relpos_base_class``: our class of the base model inside a model with a head; ``relpos_stack_class``: of the model inside that one, in
    families where there is one. ``code_exporter``: writes the package's code into a
    folder that a model is saved to, ``card_writer`` a model card; both set by the installed package, None in code that was itself
    loaded from such a folder, where transformers carries the code along.
    """

    relpos_base_class: ClassVar[type | None] = None
    relpos_stack_class: ClassVar[type | None] = None
    code_exporter: ClassVar[Callable[[Any, Path], Any] | None] = None
    card_writer: ClassVar[Callable[[Any, Path], None] | None] = None

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
        check_loaded(plan, info)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save as transformers does, with the code along, so that the folder loads without this package.

        Everything is written beside the folder first and then moved in, so that a full disk or a kill leaves what was there.
        Raises NotADirectoryError when the path is a file, OSError when it cannot be written.
        """
        target = Path(save_directory)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(f"cannot save to {target}: it is a file")
        push, hub_arguments = kwargs.pop("push_to_hub", False), {}
        if push:
            names = ("repo_id", "commit_message", "create_pr", "private", "revision", "tags")
            hub_arguments = {name: kwargs.pop(name) for name in names if name in kwargs}
            hub_arguments.setdefault("repo_id", target.name)
        kwargs.setdefault("save_original_format", False)
        if kwargs.get("distributed_checkpoint") or not is_main_process:
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)  # type: ignore[misc]
            return
        target.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
        try:
            if self.code_exporter is not None:
                type(self).code_exporter(self, staging)  # type: ignore[misc]
            super().save_pretrained(staging, is_main_process=True, **kwargs)  # type: ignore[misc]
            if self.card_writer is not None and not (target / "README.md").exists():
                type(self).card_writer(self, staging)  # type: ignore[misc]
            _move_into(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        if push:
            self.push_to_hub(token=kwargs.get("token"), **hub_arguments)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tokenizer: Any = None,
        folder: str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload the model, its code, its card and, when given, its tokenizer in one commit; the repository is made if need be.

        ``folder`` names one that the model was saved to, whose card and other files go along; without it a fresh save is uploaded. A push
        that fails changes nothing there or here and can be repeated. Other arguments are those of ``save_pretrained``.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as temporary:
            source = Path(folder) if folder is not None else Path(temporary)
            if folder is None:
                self.save_pretrained(source, **kwargs)
            if tokenizer is not None:
                tokenizer.save_pretrained(source)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=source,
                commit_message=commit_message or "Upload model with relative positions",
                revision=revision,
                create_pr=create_pr,
                ignore_patterns=["checkpoint-*", ".*", "runs/*"],
            )


def _become(model: Any, cls: Any) -> None:
    """Make a host's inner model one of ours, and known to transformers' capture of hidden states and attention weights, which goes by
    the name of the class that was constructed."""
    model.__class__ = cls
    _CAN_RECORD_REGISTRY[model] = model._can_record_outputs


def _move_into(staging: Path, target: Path) -> None:
    """Move the files of ``staging`` into ``target``, config last, and remove weight files of an earlier save that none replaces."""
    new = sorted(staging.iterdir(), key=lambda path: (path.name == "config.json", path.name))
    names = {path.name for path in new}
    for path in new:
        os.replace(path, target / path.name)
    for old in target.glob("model*.safetensors*"):
        if old.name not in names:
            old.unlink()
