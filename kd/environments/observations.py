"""The text between two answers of a dialogue, as ids: what ends a turn, another message, and what opens the next."""

from transformers import PreTrainedTokenizerBase

from kd.data.chat_template import as_text, render, turn_of
from kd.data.token_ids import TextError, ids_of, spelling
from kd.types import Message

_ANSWER = "Answer."  # in the place of the answer, whose ids are known
_BEFORE: tuple[Message, ...] = ({"role": "user", "content": "Question?"}, {"role": "assistant", "content": _ANSWER})


def encode_observation(message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that follow an answer's end token where a dialogue goes on with `message`, up to the next answer's beginning.

    They do not depend on what was said before, so that the ids of a dialogue are those that were generated, and none is
    encoded again. Strings such as `<|im_end|>` in the message are text. Without a chat template a blank line goes
    before the message and a newline after it.

    Raises:
        TextError: the template refuses the message, or writes no answer before it.
    """
    message = {**message, "content": as_text(str(message["content"]), tokenizer)}
    if not tokenizer.chat_template:
        return ids_of(f"\n\n{message['content']}\n", tokenizer)
    whole = render([*_BEFORE, message], tokenizer)
    _, found, after = whole.partition(_ANSWER)
    if not found:
        raise TextError("has an answer that the chat template does not write; set chat_template of the model")
    turn = turn_of(tokenizer)
    return ids_of(after.removeprefix(turn.closing).removeprefix(spelling(turn.end, tokenizer)), tokenizer)
