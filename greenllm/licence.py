"""A checkpoint's licence as it is stated beside it, and what that means for something made from it.

It says what the usual licences say, in a line; it is no legal advice and does not read the text.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

_FREE = ("apache-2.0", "mit", "bsd", "isc", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "unlicense", "odc-by",
         "wtfpl", "afl-3.0", "zlib", "bsl-1.0", "postgresql", "pddl")  # fmt: skip
_SAME = ("cc-by-sa", "gpl", "lgpl", "agpl", "mpl", "eupl", "osl", "odbl")
_OWN = ("llama", "gemma", "openrail", "bigscience", "creativeml", "bigcode", "deepfloyd", "qwen", "tongyi", "other")
_HEADS = {  # how the texts of licences begin
    r"apache license\s+version 2\.0": "apache-2.0",
    r"mit license": "mit",
    r"gnu general public license\s+version 3": "gpl-3.0",
    r"gnu lesser general public license\s+version 3": "lgpl-3.0",
    r"gnu affero general public license\s+version 3": "agpl-3.0",
    r"mozilla public license[,\s]+version 2\.0": "mpl-2.0",
    r"bsd 3-clause": "bsd-3-clause",
    r"bsd 2-clause": "bsd-2-clause",
    r"attribution-noncommercial 4\.0": "cc-by-nc-4.0",
    r"attribution-sharealike 4\.0": "cc-by-sa-4.0",
    r"attribution 4\.0": "cc-by-4.0",
}
_MOST = 100_000  # characters that are read


def stated(directory: Path) -> str | None:
    """The licence by the hub's name: of the model card's front matter, else of a licence file; None for neither."""
    files = sorted(directory.glob("LICEN[CS]E*"))
    return _of_card(directory / "README.md") or next(filter(None, map(_of_text, files)), None)


def on_hub(licence: str | None) -> dict[str, str]:
    """What a card's front matter says of it: a name that the hub knows, or "other" with the name."""
    if licence is None:
        return {}
    known = licence.lower().startswith((*_FREE, *_SAME, "cc-by-", *(n for n in _OWN if n != "other")))
    return {"license": licence.lower()} if known else {"license": "other", "license_name": licence}


def terms(licence: str | None) -> tuple[bool | None, str]:
    """Whether a changed model may be passed on, None where one must read, and the reason in words."""
    if licence is None:
        return None, "No licence is stated beside the source: ask its authors before you pass this on."
    name = licence.lower()
    if "-nd" in name:
        return False, f"{licence} allows no changed versions: keep this to yourself."
    if "-nc" in name:
        return None, f"{licence} allows changed versions for other than commercial ends, with the authors named."
    if name.startswith(_SAME):
        return True, f"{licence} allows changed versions under the same licence, which this one then has too."
    if name.startswith(_FREE):
        return True, f"{licence} allows changed versions; keep its notice and name the authors where it asks for that."
    own = "is a licence of its own" if name.startswith(_OWN) else "is not known here"
    return None, f"{licence} {own}: read it before you pass this on."


def _of_card(file: Path) -> str | None:
    text = _read(file)
    match = re.match(r"\s*---\s*\n(.*?)\n---", text, re.DOTALL)
    try:
        data = yaml.safe_load(match.group(1)) if match else None
    except yaml.YAMLError:
        return None
    if not isinstance(data, dict):
        return None
    found = data.get("license")
    if found == "other":
        found = data.get("license_name") or found
    if isinstance(found, list):
        found = found[0] if len(found) == 1 else None
    return found[:80] if isinstance(found, str) and re.fullmatch(r"[\w.+ -]+", found) else None


def _of_text(file: Path) -> str | None:
    head = _read(file)[:2000].lower()
    return next((name for pattern, name in _HEADS.items() if re.search(pattern, head)), None)


def _read(file: Path) -> str:
    if file.is_symlink() and not file.resolve().is_file():
        return ""
    try:
        with file.open(encoding="utf-8", errors="replace") as f:
            return f.read(_MOST)
    except OSError:
        return ""
