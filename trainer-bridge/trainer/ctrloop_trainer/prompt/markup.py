"""Texts are data, never markup: a merchant's title that spells a control token must not become one.

Tokenizers look for their special tokens in whatever text they are given, so `<image>` in a caption would ask for a
second picture, and `<|im_end|>` would close the user's turn. escape() takes every such text apart with a space, which a
reader does not mind: `< image>`. Ordinary texts are returned as they are.
"""

import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..errors import BadInputError

# Added tokens that are not called special and act as such: <tool_call>, [TOOL]. Others (runs of spaces) are plain text.
_BRACKETED = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_SPOKEN, _ANSWERED, _AGAIN = "\ue000", "\ue001", "\ue002"  # private-use characters: in no template


class Markup:
    """The control texts of one tokenizer and chat template."""

    def __init__(self, markers: Iterable[str], tokenizer: PreTrainedTokenizerBase):
        texts = sorted(set(markers), key=lambda t: (-len(t), t))
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts else None
        self._tokenizer = tokenizer
        self._control = {tokenizer.convert_tokens_to_ids(t) for t in texts} - {tokenizer.unk_token_id, None}

    @staticmethod
    def of(processor: ProcessorMixin) -> "Markup":
        """That of a model's processor."""
        special = special_tokens(processor.tokenizer)
        named = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio", "boi", "eoi"))
        special |= {t for t in named if isinstance(t, str) and t}
        return Markup(special | turn_markers(processor, special), processor.tokenizer)

    def escape(self, text: str) -> str:
        """text without a control token in it; BadInputError where that cannot be had."""
        if self._pattern is None:
            return text
        # Taking one apart may leave another (<<image>image>): each pass ends at least one, and adds no new one.
        out = text
        for _ in range(len(text)):
            if not self._pattern.search(out):
                break
            out = self._pattern.sub(lambda m: f"{m[0][:1]} {m[0][1:]}", out)
        # A tokenizer may change texts before it looks (full-width brackets): ask it.
        found = self._control & set(self._tokenizer.encode(out, add_special_tokens=False))
        if found:
            token = self._tokenizer.convert_ids_to_tokens(min(found))
            raise BadInputError(f"the text {text[:80]!r} becomes the control token {token!r}: take it out of the text")
        return out


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Texts that the tokenizer takes for control tokens wherever they stand."""
    added = tokenizer.added_tokens_decoder.values()
    own = {t.content for t in added if t.special or _BRACKETED.fullmatch(t.content)}
    return {t for t in own | set(tokenizer.all_special_tokens) if t.strip()}


def turn_markers(processor: ProcessorMixin, special: set[str]) -> set[str]:
    """What else stands between two turns of the chat template and is not a mere word: [/INST], ASSISTANT:."""
    talk = [("user", _SPOKEN), ("assistant", _ANSWERED), ("user", _AGAIN)]
    conversation = [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in talk]
    try:
        text = processor.apply_chat_template(conversation, tokenize=False)
    except Exception:  # a template's own checks (no system text, one turn only): there is nothing to read off
        return set()
    between = text.partition(_SPOKEN)[2].partition(_AGAIN)[0].replace(_ANSWERED, " ")
    for token in special:
        between = between.replace(token, " ")
    return {w for w in between.split() if len(w) > 1 and not w.isalnum()}
