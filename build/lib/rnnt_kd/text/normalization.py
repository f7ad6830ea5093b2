"""The one normalisation of transcripts, hot words, words of language models, references and hypotheses."""

import unicodedata

FORMS = ("nfc", "none")


def normalized(text: str, form: str = "nfc") -> str:
    """``text`` with one space where it has blanks of any kind, none at its ends; in Unicode's NFC unless ``form`` says
    none: letters that look alike are alike, however an editor composed them."""
    text = " ".join(text.split())
    return unicodedata.normalize("NFC", text) if form == "nfc" else text
