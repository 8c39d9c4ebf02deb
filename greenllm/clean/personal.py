"""Patterns of personal data: mail addresses; numbers of telephones, bank accounts, cards, people.

Numbers with check digits count only where these are right (ISO 7064 for IBAN, Luhn for cards), telephone numbers only
with their country's code and as that country gives them out. Names and addresses have no pattern and are not found.
"""

from __future__ import annotations

import re

_MAIL = re.compile(r"\b[\w.+-]{1,64}@(?:[\w-]+\.)+[a-z]{2,24}\b", re.IGNORECASE)
_RESERVED = re.compile(r"@(?:[\w-]+\.)*(?:example|test|invalid)(?:\.(?:com|org|net))?$", re.IGNORECASE)  # RFC 2606
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{2,4}){3,8}\b")
_CARD = re.compile(r"(?<![\d.])(?:\d[ -]?){12,18}\d(?![\d.])")
_SOCIAL = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")  # of the USA
_CHINESE = re.compile(r"(?<!\d)[1-9]\d{16}[\dXx](?!\d)")


def personal(text: str) -> str | None:
    """See :data:`greenllm.clean.Check`; the reason names the kind, never the datum."""
    from stdnum import iban, luhn
    from stdnum.cn import ric

    for match in _MAIL.finditer(text):
        if not _RESERVED.search(match.group()):
            return "with personal data (mail address)"
    if any(iban.is_valid(m.group()) for m in _IBAN.finditer(text)):
        return "with personal data (IBAN)"
    if any(ric.is_valid(m.group()) for m in _CHINESE.finditer(text)):
        return "with personal data (Chinese identity number)"
    if any(luhn.is_valid(re.sub(r"[ -]", "", m.group())) for m in _CARD.finditer(text)):
        return "with personal data (card number)"
    if _SOCIAL.search(text):
        return "with personal data (US social security number)"
    return "with personal data (telephone number)" if "+" in text and _telephone(text) else None


def _telephone(text: str) -> bool:
    import phonenumbers

    return any(True for _ in phonenumbers.PhoneNumberMatcher(text, None))
