from __future__ import annotations

import re
from pathlib import Path

LOCK = Path(__file__).parents[3] / "requirements" / "dev.txt"


def test_lock_file_pins_by_hash_and_names_no_place_to_fetch_from() -> None:
    text = LOCK.read_text()
    entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip())

    assert len(entries) > 50
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,-]+\])?==", entry), entry
        assert "--hash=sha256:" in entry
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash=)", text, flags=re.MULTILINE)
