"""What a run leaves in a folder: its numbers as JSON, and the table made from them."""

from pathlib import Path

from result_files import ComparisonResults, Results, write_atomically


def store(results: Results | ComparisonResults, table: str, folder: Path) -> None:
    """Write both files, replacing those of the same name, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{results.stem}.json"
    write_atomically(path, results.to_json())
    write_atomically(path.with_suffix(".md"), table)
    print(table)
    print(f"wrote {path} and {path.with_suffix('.md').name}")
