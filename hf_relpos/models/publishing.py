"""Saving a model with its code and card, and putting it on the Hub, so that nothing that was there is lost on the way."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from .upload import CARD, PUSH_OPTIONS, files_to_upload, outdated_weights, upload

SAVE_OPTIONS = ("max_shard_size", "save_original_format", "save_peft_format", "state_dict", "variant")


class PublishingMixin:
    """Left-hand base of a transformers model class: its ``save_pretrained`` and ``push_to_hub``.

    ``code_exporter``: writes the package's code into a folder that a model is saved to, ``card_writer`` a model card; both set by the
    installed package, None in code that was itself loaded from such a folder, where transformers carries the code along.
    """

    code_exporter: ClassVar[Callable[[Any, Path], Any] | None] = None
    card_writer: ClassVar[Callable[[Any, Path], None] | None] = None

    def check_before_saving(self) -> None:
        """Raise ValueError when what would be saved is not what the model is; nothing is written then."""

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save as transformers does, with the code along, so that the folder loads without this package.

        Everything is written beside the folder first and then moved in, so that a full disk or a kill leaves what was there. With
        ``push_to_hub=True`` what was written goes to the Hub too, with the folder's card, as ``repo_id`` (the folder's name unless given);
        the other arguments of :meth:`push_to_hub` go along. A push that fails leaves the saved folder.

        Raises NotADirectoryError when the path is a file, OSError when it cannot be written.
        """
        self.check_before_saving()
        target = Path(save_directory)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(f"cannot save to {target}: it is a file")
        push = kwargs.pop("push_to_hub", False)
        push_options = {name: kwargs.pop(name) for name in PUSH_OPTIONS if push and name in kwargs}
        if push and kwargs.get("distributed_checkpoint"):
            raise ValueError(
                "a distributed checkpoint holds no model that loads from the Hub: save without push_to_hub"
            )
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
            if self.card_writer is not None and not (target / CARD).exists():
                type(self).card_writer(self, staging)  # type: ignore[misc]
            written = _move_into(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        if push:
            files = {name: target / name for name in (*written, CARD) if (target / name).exists()}
            push_options.setdefault("repo_id", target.resolve().name)
            upload(self, files, token=kwargs.get("token"), **push_options)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: list[str] | None = None,
        tokenizer: Any = None,
        folder: str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload the model, its code, its card and, when given, its tokenizer in one commit; the repository is made if need be.

        ``folder`` names one that the model was saved to, whose card and other files go along; without it a fresh save is uploaded. A
        generated card names the repository, and does not replace a card that is there. Weights there that the new ones do not
        overwrite, such as shards, are removed. A push that fails leaves the files there and here as they were and can be repeated.
        Other arguments are those of ``save_pretrained``.

        Raises TypeError for an argument that neither has, NotADirectoryError when ``folder`` is none.
        """
        unknown = sorted(set(kwargs) - set(SAVE_OPTIONS if folder is None else ()))
        if unknown:
            valid = f"; of saving it knows {', '.join(SAVE_OPTIONS)}" if folder is None else " together with folder"
            raise TypeError(f"push_to_hub() does not know {', '.join(unknown)}{valid}")
        if folder is not None and not Path(folder).is_dir():
            raise NotADirectoryError(f"cannot push {folder}: it is not a folder")
        with tempfile.TemporaryDirectory() as temporary:
            source = Path(temporary, "model") if folder is None else Path(folder)
            if folder is None:
                self.save_pretrained(source, **kwargs)
            files = files_to_upload(source)
            if tokenizer is not None:
                tokenizer.save_pretrained(Path(temporary, "tokenizer"))
                files.update(files_to_upload(Path(temporary, "tokenizer")))
            return upload(
                self,
                files,
                repo_id,
                commit_message=commit_message,
                commit_description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                tags=tags,
            )


def _move_into(staging: Path, target: Path) -> list[str]:
    """Move the files of ``staging`` into ``target``, config last, remove weight files of an earlier save that none replaces, and return
    the names of what was moved."""
    new = sorted(staging.iterdir(), key=lambda path: (path.name == "config.json", path.name))
    names = [path.name for path in new]
    for path in new:
        os.replace(path, target / path.name)
    for name in outdated_weights(names, os.listdir(target)):
        (target / name).unlink()
    return names
