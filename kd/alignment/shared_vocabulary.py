"""Two vocabularies of one family: the same pieces of text, under other ids or with some tokens more."""

from transformers import PreTrainedTokenizerBase

from kd.alignment.spans import SpanAlignment
from kd.data.chat_template import end_id

PROBE = "Tom has 12 apples.\n\nHow many? 3.5€ naïve 日本 🙂"


class SharedVocabulary(SpanAlignment):
    """The teacher's tokens are the student's; only ids, special tokens and chat template may differ.

    Positions are compared where both have the same token: everywhere but where one side lacks a token. Only ids that
    the tokenizers use take part, not those of padded heads.
    """

    def check(
        self, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, ids: tuple[int, int] | None = None
    ) -> None:
        """Reads the two vocabularies.

        Raises ValueError if a text is not cut into the same pieces, or if each of the two ends a response with a
        token that is another one of the other's.
        """
        super().check(student, teacher, ids)
        ours = self.student.of(student(PROBE, add_special_tokens=False)["input_ids"], silent=False)
        theirs = self.teacher.of(teacher(PROBE, add_special_tokens=False)["input_ids"], silent=False)
        if ours != theirs:
            raise ValueError(
                f"alignment=shared_vocabulary needs tokens in common, but the student cuts a text into {len(ours)} "
                f"pieces, the teacher into {len(theirs)} others; take alignment=spans"
            )
        ends = [str(tokenizer.convert_ids_to_tokens(end_id(tokenizer))) for tokenizer in (student, teacher)]
        if ends[0] != ends[1] and ends[0] in teacher.get_vocab() and ends[1] in student.get_vocab():
            raise ValueError(
                f"the student ends a response with {ends[0]!r} and the teacher with {ends[1]!r}, and each has the "
                "other's as another token; give the student the teacher's tokenizer folder, or take alignment=spans"
            )
