"""How a model goes on with a prompt: the same words from the same seed, to set models side by side."""

import re
from itertools import chain

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from trainable.data.tokens import Tokens
from trainable.errors import UserError
from trainable.model.models import context_limit
from trainable.model.modes import exact_inference

SAMPLE_TOKENS = 40
PROMPT_TOKENS = 24
PROMPT_WINDOWS = 64
PROSE_LETTERS_FRAC = 0.65
"""Of all characters, spaces too; English has about 0.77."""
SENTENCE_START = re.compile(r"[.!?]\s+(?=[A-Z][a-z]*\s)")
TEMPERATURE = 0.8


def default_prompt(tokenizer: Tokenizer, val_tokens: Tokens, *, tokens: int = PROMPT_TOKENS) -> str:
    """Return the first words of prose in the held-out text, whole ones, of about `tokens` tokens; else its first words.

    Looked for in the first PROMPT_WINDOWS times `tokens` tokens, there at the start of a sentence before others.
    """
    starts = range(0, PROMPT_WINDOWS * tokens, tokens)
    cut = [tokenizer.decode(val_tokens[start : start + tokens + 1].tolist()) for start in starts]
    cut = [text for text in cut if text.split()]
    whole = tokenizer.decode(val_tokens[: starts.stop].tolist())
    begun = (_first_tokens(tokenizer, whole[match.end() :], tokens + 1) for match in SENTENCE_START.finditer(whole))
    found = (text for text in chain(begun, cut) if text.split() and _is_prose(text))
    return _whole_words(next(found, cut[0] if cut else ""))


def _first_tokens(tokenizer: Tokenizer, text: str, tokens: int) -> str:
    # Of no more characters than so many tokens have in most texts: the rest of the text need not be encoded.
    ids = tokenizer.encode(text[: 16 * tokens], add_special_tokens=False).ids
    return " " + tokenizer.decode(ids[:tokens]).lstrip()


def _whole_words(text: str) -> str:
    # The split falls within a word more often than not, and so does the end; within a character too.
    text = text.strip("\ufffd")
    words = text.split()
    inside = words[0 if text[:1].isspace() or len(words) < 3 else 1 : -1 if len(words) > 2 else None]
    return " ".join(inside)


def _is_prose(text: str) -> bool:
    # A held-out text may begin in a table or a rule of dashes, which says nothing of how a model writes.
    return sum(map(str.isalpha, text)) >= PROSE_LETTERS_FRAC * len(text)


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the prompt's tokens. Raises UserError where it has none."""
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False).ids
    if not ids:
        raise UserError(f"SAMPLE_PROMPT={prompt!r} has no token. Write some words.")
    return ids


def sample(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    tokens: int = SAMPLE_TOKENS,
    seed: int = 0,
    temperature: float = TEMPERATURE,
) -> str:
    """Return what the model goes on with after `prompt`, `tokens` tokens or up to its end-of-text token.

    Temperature 0 takes the likeliest token each time. The draws come from a CPU generator of its own, so that a seed is
    the same on every device; the model stays in its mode. Raises UserError for a prompt of no tokens.
    """
    ids = prompt_ids(tokenizer, prompt)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    limit, vocab_size = context_limit(model.config), tokenizer.get_vocab_size(with_added_tokens=True)
    ends = model.config.get_text_config().eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    start = len(ids)
    with exact_inference(model):
        for _ in range(tokens):
            # The whole context again for each token: a cache would be faster, and other arithmetic for each family.
            context = torch.tensor([ids[-limit:] if limit else ids], device=device)  # (1, T)
            logits = model(input_ids=context, use_cache=False, logits_to_keep=1).logits[0, -1].float().cpu()
            # An embedding may have rows that the tokenizer has no words for.
            ids.append(_draw(logits[:vocab_size], temperature, generator))
            if ids[-1] in ends:
                break
    return str(tokenizer.decode(ids[start:]))


def _draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.double() / temperature, -1)
    # Where the draw falls among the sums, and not multinomial(): nearly equal models then say nearly equal words.
    point = torch.rand((), generator=generator, dtype=torch.float64)
    return min(int(torch.searchsorted(probabilities.cumsum(0), point)), len(logits) - 1)
