"""Words of a text in any script, for features that count them."""

import re
import unicodedata

# Scripts that put no space between words: Thai and Lao, Tibetan, Burmese, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_JOINERS = "\u200c\u200d\u00ad"  # inside a word of Persian, of Indic scripts, at a possible hyphen


def words(text: str) -> list[str]:
    """Lower-case words, in order. Letters and the marks on them make a word; digits and signs end it.

    Where a script has no spaces a run of characters is its neighbouring pairs, most words there having two; a lone
    character is itself.
    """
    folded = unicodedata.normalize("NFKC", text).lower()
    kept = "".join(c if unicodedata.category(c)[0] in "LM" else "" if c in _JOINERS else " " for c in folded)
    out: list[str] = []
    for word in kept.split():
        at = 0
        for run in _UNSPACED.finditer(word):
            out += [word[at : run.start()]] if run.start() > at else []
            out += _pairs(run[0])
            at = run.end()
        out += [word[at:]] if at < len(word) else []
    return out


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)] or [run]
