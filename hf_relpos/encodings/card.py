"""What a reader must know of a method: where it comes from and what it promises."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Card:
    """Citation and properties of an encoding.

    ``depends_on``: "nothing", "distance" (a bias of distance alone), "position" (also on the place of
    a token in its text), "content" (distance and what the tokens hold) or "rotation".
    ``directions``: what its authors define it for: "causal" (decoders), "bidirectional" (encoders) or "both". All methods work in both; where
    the authors are silent the natural symmetric form is used, which the option ``direction`` and the documentation of the method tell.
    ``relative``: scores do not change when every slot is shifted by the same amount.
    ``beyond_training``: what happens at distances that training never showed.
    """

    title: str
    authors: str
    year: int
    arxiv: str | None
    formula: str
    depends_on: Literal["nothing", "distance", "position", "content", "rotation"]
    directions: Literal["causal", "bidirectional", "both"]
    beyond_training: str
    venue: str = ""
    relative: bool = True

    @property
    def bibtex(self) -> str:
        """A BibTeX entry; its key is the first author's family name and the year."""
        first = self.authors.split(" and ")[0]
        family = first.split(",")[0] if "," in first else first.split()[-1]
        where = (
            f"  journal = {{arXiv preprint arXiv:{self.arxiv}}},\n  eprint = {{{self.arxiv}}},\n"
            if self.arxiv
            else f"  howpublished = {{{self.venue}}},\n"
        )
        kind = "article" if self.arxiv else "misc"
        key = "".join(character for character in family.lower() if character.isalpha()) + str(self.year)
        return f"@{kind}{{{key},\n  title = {{{self.title}}},\n  author = {{{self.authors}}},\n{where}  year = {{{self.year}}}\n}}"
