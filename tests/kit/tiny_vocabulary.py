"""The vocabulary of the tiny models: readable words, and a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_TEXT = """the of and to in is that it for on with as was at by from this be are or an which one all there
their has not but can more when who will no if out so what up said about them than its time into only new some
could these two may then do first any my now such like our over me even most made after also did many before
must through back years where much your way well down should because each just those people how too little
state good very make world still own see men work long get here between both life being under never day same
another know while last might us great old year off come since against go came right used take three gpu queue
token router memory model cache batch request server load heat fan clock slot layer kernel prompt stream block
page graph node card power limit watt backend latency throughput"""
BOS, _ROLE, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Byte-level BPE: ``words`` are the ids of whole words, ``specials`` those of control tokens."""

    tokens: Sequence[str]
    merges: Sequence[str]
    words: Sequence[int]
    specials: dict[str, int]


def vocabulary_of_words() -> Vocabulary:
    """The 256 bytes, every beginning of `` word`` (so that merges lead up to it), and the special tokens."""
    alias = _printable_bytes()
    tokens = [alias[byte] for byte in range(256)]
    known = {token: index for index, token in enumerate(tokens)}
    merges: list[str] = []
    words: list[int] = []
    for word in dict.fromkeys(_TEXT.split()):
        letters = [alias[byte] for byte in f" {word}".encode()]
        token = letters[0]
        for letter in letters[1:]:
            if token + letter not in known:
                known[token + letter] = len(tokens)
                tokens.append(token + letter)
                merges.append(f"{token} {letter}")
            token += letter
        words.append(known[token])
    specials = {special: len(tokens) + index for index, special in enumerate((BOS, _ROLE, EOS))}
    return Vocabulary([*tokens, *specials], merges, words, specials)


def _printable_bytes() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where it is printable, else a letter from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + index) for index, byte in enumerate(others)
    }
