"""The language of a text by its byte n-grams (langid: Lui and Baldwin, 2012, "langid.py", ACL demo)."""

from __future__ import annotations

from greenllm.errors import GreenError

_SHORT = 20  # characters: shorter ones are told by chance
# Written as one, or so nearly that a few sentences do not tell them apart.
_KIN = {"zh": {"wuu", "yue", "gan", "hak", "lzh"}, "no": {"nb", "nn"}, "nb": {"no", "nn"}, "nn": {"no", "nb"}}


class Language:
    """Drops what is in another language.

    Args:
        code: ISO 639-1, as "en", "zh".

    Raises:
        GreenError: an unknown code.
    """

    def __init__(self, code: str) -> None:
        import py3langid

        known = sorted(py3langid.langid.LanguageIdentifier.from_model_file(py3langid.langid.MODEL_FILE).nb_classes)
        if code not in known:
            raise GreenError(f"No language has the code {code!r} here.", f"There are {', '.join(known)}.")
        self._code = code

    def __call__(self, text: str) -> str | None:
        """See :data:`greenllm.clean.Check`."""
        import py3langid

        if len(text.strip()) < _SHORT * (0.5 if self._code in ("zh", "ja", "ko") else 1):
            return None
        found = py3langid.classify(text)[0]
        return None if found in {self._code, *_KIN.get(self._code, ())} else f"in another language ({found})"
