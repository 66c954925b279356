"""OCR-VQA in miniature: books of all three splits in one file, and their covers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.mini import write_json, write_picture

BOOKS: dict[str, dict[str, Any]] = {
    f"{asin}": {
        "imageURL": f"http://pictures.example/images/I/{name}",
        "questions": ["Who wrote this book?", "What is the title of this book? ", "Is this a cookbook?"],
        "answers": [author, title, "No"],
        "title": title,
        "authorName": author,
        "genre": "Travel",
        "split": split,
    }
    for asin, name, author, title, split in [
        ("0001112223", "51abc.jpg", "Ada Lake", "Rivers {and} Roads", 1),
        ("B00TRAIN2X", "61def.gif", "Ben Hill", "By Train to the Sea", 1),
        ("0003334445", "71ghi.png", "Cy Moor", "Islands", 2),
        ("0004445556", "81jkl.jpg", "Di Field", "Paths", 3),
        ("0005556667", "91mno.jpg", "Ed Wood", "Trees", 3),
    ]
}


def write(root: Path) -> None:
    """Write the release: `dataset.json`, and the covers as the authors' script saves them."""
    write_json(root / "dataset.json", BOOKS)
    for number, (asin, book) in enumerate(BOOKS.items()):
        write_picture(root / "images" / f"{asin}{Path(book['imageURL']).suffix}", number)
