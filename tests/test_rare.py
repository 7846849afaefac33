"""bench/rare.py: the training questions of the buffer's comparison."""

from bench.rare import RARE, facts_of, rare
from world import table as world


def test_hard_questions_are_one_in_sixteen_and_hold_every_misremembered_fact():
    questions, _ = world.questions()
    chosen, table, student = rare(questions), world.secret_table(), world.beliefs("student")
    facts = facts_of(questions)
    wrong = {entry for entry in table if table[entry] != student[entry]}
    hard = [question for question in chosen if facts[question.uid]]
    assert set().union(*(facts[question.uid] for question in hard)) == wrong and len(wrong) == 36
    assert len(hard) == (len(chosen) - len(hard)) // (RARE - 1)
    kept = {question.uid for question in chosen}
    assert all(question.uid in kept for question in questions if not facts[question.uid])
    assert [question.uid for question in questions if question.uid in kept] == [question.uid for question in chosen]
    for question in hard:  # whose answer the student's beliefs do not give, or by luck only
        start, signs = world.asked(question)
        assert world.walk(student, start, signs) != world.walk(table, start, signs)
