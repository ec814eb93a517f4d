"""Putting the files of a saved model into a repository on the Hub."""

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects
from transformers.utils import logging

logger = logging.get_logger(__name__)

CARD = "README.md"
# stands in a generated card for the model's name on the Hub until a push knows it
MODEL_ID = "path/or/hub-id"
PUSH_OPTIONS = ("commit_description", "commit_message", "create_pr", "private", "repo_id", "revision", "tags")
# what an earlier save may have left behind, by variant: whole, in shards, or the index of the shards
_WEIGHTS = re.compile(
    r"model(?:\.(?P<variant>.+?))?(?:-\d{5}-of-\d{5})?\.safetensors"
    r"|model\.safetensors\.index(?:\.(?P<index_variant>.+))?\.json"
)


def files_to_upload(folder: Path) -> dict[str, Path]:
    """The files of a folder that belong in a repository, by their names there."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    ignored = ["checkpoint-*", ".*", "runs/*", *DEFAULT_IGNORE_PATTERNS]
    return {name: folder / name for name in filter_repo_objects(names, ignore_patterns=ignored)}


def upload(
    model: Any,
    files: dict[str, Path],
    repo_id: str,
    *,
    token: str | bool | None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: list[str] | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> Any:
    """Put ``files``, by their names there, into a repository that is made if need be."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    present = api.list_repo_files(repo_id, revision=revision)
    contents: dict[str, Any] = dict(files)
    own = contents.pop(CARD).read_bytes() if CARD in files else None
    card = None if own is None else own.replace(MODEL_ID.encode(), repo_id.encode())
    if CARD in present and (own is None or own == _generated_card(model)):
        there = Path(api.hf_hub_download(repo_id, CARD, revision=revision)).read_bytes()
        if card not in (None, there):
            logger.warning(
                "%s keeps its %s; delete that file there to have one generated for this model", repo_id, CARD
            )
        card = there
    if card is not None or tags:
        contents[CARD] = _tagged(card or b"", tags or [])
    operations = [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]
    # not upload_folder: it may commit in parts, and a failure then leaves new code beside old weights
    return api.create_commit(
        repo_id,
        [*operations, *(CommitOperationDelete(name) for name in outdated_weights(contents, present))],
        commit_message=commit_message or "Upload model with relative positions",
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
    )


def _generated_card(model: Any) -> bytes | None:
    """The card that a save of ``model`` writes where there is none."""
    if model.card_writer is None:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        type(model).card_writer(model, Path(temporary))
        return Path(temporary, CARD).read_bytes()


def _tagged(card: bytes, tags: list[str]) -> bytes:
    """``card`` with ``tags`` in its metadata, unchanged where it has them."""
    if not tags:
        return card
    parsed = ModelCard(card.decode())
    data: Any = parsed.data
    present = data.tags or []
    data.tags = [*present, *(tag for tag in tags if tag not in present)]
    return card if data.tags == present else str(parsed).encode()


def outdated_weights(new: Iterable[str], present: Iterable[str]) -> list[str]:
    """Those of the weight files ``present`` that belong to an earlier save of a variant that is among ``new``."""
    new = set(new)

    def variants(names: Iterable[str]) -> dict[str, str | None]:
        matches = filter(None, map(_WEIGHTS.fullmatch, names))
        return {match[0]: match["variant"] or match["index_variant"] for match in matches}

    saved = set(variants(new).values())
    return sorted(name for name, variant in variants(present).items() if variant in saved and name not in new)
