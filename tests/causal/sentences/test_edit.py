"""Edits of text layers: which sentences a person would type anew, and how."""

from memscope.causal.sentences.edit import retyped
from memscope.text.fact_files import Fact
from memscope.text.sentences import Sentence, Triple
from memscope.text_bank.bank import SentenceBank

FACT = Fact("f1", "University of Lund", "city", "Lund", "[X] is in [Y] .")


def triple(subject: str, object_: str, uuid: str = "") -> Triple:
    return Triple(uuid, subject, "city", object_)


def changed(*sentences: tuple[str, tuple[Triple, ...]]) -> dict[int, str]:
    bank = SentenceBank.of([Sentence(text, triples) for text, triples in sentences], [[1]] * len(sentences))
    return retyped(FACT, "Oslo", bank)


def test_the_name_of_the_subject_stays() -> None:
    own = (triple("University of Lund", "Lund", "f1"),)
    assert changed(("The University of Lund stands in Lund , not in Lundby .", own)) == {
        0: "The University of Lund stands in Oslo , not in Lundby ."
    }


def test_a_sentence_in_other_words_becomes_the_statement() -> None:
    own = (triple("University of Lund", "Lund", "f1"),)
    assert changed(("The University of Lund is in the town of the cathedral .", own)) == {
        0: "University of Lund is in Oslo ."
    }


def test_a_sentence_with_part_of_the_name_has_the_statement_before_it() -> None:
    own = (triple("University of Lund", "Lund", "f1"),)
    assert changed(("The University has been in Lund since 1666 .", own)) == {
        0: "University of Lund is in Oslo . The University has been in Oslo since 1666 ."
    }


def test_other_sentences_with_both_names_are_changed_unless_the_object_is_anothers() -> None:
    assert changed(
        ("From Lund one walks to the University of Lund .", ()),
        ("The cathedral of Lund is near the University of Lund .", (triple("cathedral", "Lund"),)),
        ("The University of Lund is old .", ()),
        ("Lund is old .", ()),
    ) == {0: "From Oslo one walks to the University of Lund ."}
