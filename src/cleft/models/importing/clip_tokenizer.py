"""CLIP's own tokenizer from `bpe_simple_vocab_16e6.txt.gz`, the one file of it that OpenAI and open_clip hold.

The file lists merges, the most frequent first, behind a line that tells its version. The vocabulary follows: 256 bytes,
256 bytes that end a word, one token a merge, and the two marks of a text. Lower case and white space are transformers'
of CLIP; OpenAI's mending of broken text (ftfy, HTML) is left out, as there.

Source: openai/CLIP, `simple_tokenizer.py`.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from cleft.errors import CheckpointError
from cleft.grammar import count

_MARKS = ("<|startoftext|>", "<|endoftext|>")
_LARGEST = 16 * 2**20


def load_merges(path: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """Makes CLIP's tokenizer of a file of merges.

    Args:
        path: The file, packed by gzip.
        vocabulary: Tokens of the text tower; so many merges of the file count.

    Raises:
        CheckpointError: If it is no such file, or has too few merges.
    """
    try:
        with gzip.open(path) as file:
            lines = file.read(_LARGEST).decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is no file of merges packed by gzip ({error}); give CLIP's bpe_simple_vocab_16e6.txt.gz or the "
            f"folder of a tokenizer"
        ) from error
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # by code point, which is the order of the release
    wanted = vocabulary - 2 * len(letters) - len(_MARKS)
    merges = [(first, second) for line in lines[1:] for first, _, second in [line.partition(" ")] if second]
    if not 0 <= wanted <= len(merges):
        raise CheckpointError(
            f"{path} has {count(len(merges), 'merge')} and the text tower {vocabulary} tokens, of which {wanted} "
            f"should be merges; give the file it was trained with"
        )
    counted: Any = merges[:wanted]  # as pairs, which the library takes and does not declare
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, counted), *_MARKS]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=counted)
