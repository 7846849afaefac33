"""cleaning.py on hand-made cases: which sentences leave a question, which gold a solution gives."""

import time

import pytest

from engine import cleaning
from engine.cleaning import extract_boxed

GONE = r"""
Please reason step by step, and put your final answer within \boxed{}.
Put your answer in \boxed{}.
Answer with the option's letter from the given choices directly.
Please answer directly with only the letter of the correct option and nothing else.
Answer the question using a single word or phrase.
Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.
Hint: Please answer the question and provide the correct option letter, e.g., A, at the end.
Let's think step by step.
Think step by step before answering.
First output the thinking process in <think> </think> tags and then output the final answer in <answer> </answer> tags.
You FIRST think about the reasoning process as an internal monologue and then provide the final answer.
The reasoning process MUST BE enclosed within <think> </think> tags.
The final answer MUST BE put in \boxed{}.
Solve the following math problem step by step.
The last line of your response should be of the form Answer: $Answer (without quotes) where $Answer is the answer.
Remember to put your answer on its own line after "Answer:".
Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags.
Your final answer should be a single letter.
Answer with a single letter (A, B, C or D).
Answer with one word.
Respond with only the letter of the correct choice.
Select the correct answer and give its letter.
Choose the letter of the correct option.
Please select the letter of the best option from the choices below.
Answer with the correct option.
Write your final answer in <answer></answer> tags.
Please enclose your final answer in $\boxed{}$.
Note: put your final answer inside \boxed{answer}.
Give the answer directly.
**Answer with the letter only.**
Provide the answer as JSON.
You should first think about the reasoning process in the mind and then provide the user with the answer.
First perform reasoning, then provide the final answer in \boxed{}.
Show your reasoning step by step.
First perform reasoning, then finally select the question from the choices in the following format: Answer: xxx.
Make sure to put the answer (and only the answer) inside \boxed{}.
""".strip().split("\n")

STAYS = r"""
Choose the option whose letters spell the word shown in the picture.
Select the option that completes the pattern, and answer with its letter.
Answer with a single word: the colour of the car on the left.
Write the answer to 3 + 4 as a single number.
Give the answer in cm, rounded to two decimals.
Express your answer as a single fraction.
Select the letter that labels the root.
Answer with a single word: what is it?
Solve 2x = 4 step by step.
Answer yes or no.
Answer with yes or no.
Give the first letter of the word.
Answer with the first letter.
Write the letter that comes after C.
Write the letter between B and D.
State the number of letters in the word.
Answer with the letters in alphabetical order.
Answer with all letters that apply.
Answer with the letters of all correct options.
Answer in words.
Answer using uppercase letters.
Find the answer.
Give your answer in simplest form.
Write the word in the box.
Write the letter in the box.
Choose the correct option.
Select the correct answer.
Write the number shown in the box.
Round the final answer to the nearest integer.
Answer with the letter printed on the blue door.
Give the one word that the four pictures share.
Answer in one word the riddle in the picture.
Write a single letter for each missing place in C_T.
State the letter of the triangle's right angle.
Mark the point directly above the box.
Use the letters in the picture to form one word.
Answer the crossword clue in one word: a large cat.
Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.
Which letter is missing?
Think of a number and add 3.
Solve the equation step by step: 2x = 4.
Put the steps in the right order and give the letters.
The answer should be in meters.
Your answer should be a multiple of 5.
The letter should be a vowel.
Choose the answer with the longest word.
Give the answer to the problem on the board directly.
Answer with A or B.
Is the answer a single letter?
The last line of the poem is the answer.
Let the reasoning begin with the letter k.
Put a cross in the box.
Write the answer in the following format: (x, y).
Give the answer in the following format: hours:minutes.
""".strip().split("\n")


def test_the_table_is_large_enough():
    assert len(GONE) >= 30 and len(STAYS) >= 30 and len({*GONE, *STAYS}) == len(GONE) + len(STAYS)


@pytest.mark.parametrize("wish", GONE)
def test_a_sentence_that_is_nothing_but_a_wish_leaves(wish):
    assert cleaning.strip_directives(f"How long is AB? {wish}") == "How long is AB?"
    assert cleaning.strip_directives(f"{wish}\nHow long is AB?") == "How long is AB?"
    assert cleaning.strip_directives(f"Find AB.\n{wish}\nA. 1\nB. 2") == "Find AB.\nA. 1\nB. 2"


@pytest.mark.parametrize("sentence", STAYS)
def test_a_sentence_that_carries_the_question_or_changes_the_answer_stays(sentence):
    assert cleaning.strip_directives(sentence) == sentence
    assert (
        cleaning.strip_directives(f"Look at the picture. {sentence}")
        == f"Look at the picture. {sentence}"
    )


@pytest.mark.parametrize(
    "given, expected",
    [
        # a wish hung on to the question goes as a clause
        ("Find the area and put your final answer within \\boxed{}.", "Find the area."),
        ("Solve for x, then write your answer in <answer> </answer> tags.", "Solve for x."),
        # if only options would be left, the question stays as it was
        (
            "Answer with the letter of the correct option.\nA. red\nB. blue",
            "Answer with the letter of the correct option.\nA. red\nB. blue",
        ),
        (
            "Choose the letter of the best answer.\nChoices:\n(A) 1\n(B) 2",
            "Choose the letter of the best answer.\nChoices:\n(A) 1\n(B) 2",
        ),
        # options are not wishes
        (
            "What comes next?\nA. Answer directly.\nB. Think step by step.",
            "What comes next?\nA. Answer directly.\nB. Think step by step.",
        ),
        ("Find x.\n\nThink step by step.\n\nA. 1\nB. 2", "Find x.\n\nA. 1\nB. 2"),
    ],
)
def test_clauses_and_options(given, expected):
    assert cleaning.strip_directives(given) == expected
    assert cleaning.strip_directives(expected) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 24", ("24", "####")),
        ("He pays 1,000 dollars.\n#### 1,000\n", ("1,000", "####")),
        (
            "#### Step 1\nAdd.\n#### Step 2\nSo 7.",
            ("#### Step 1\nAdd.\n#### Step 2\nSo 7.", "column"),
        ),  # headings
        ("We get \\boxed{\\frac{1}{2}}.", ("\\frac{1}{2}", "boxed")),
        ("First \\boxed{3}, then \\boxed {4}, last \\boxed{5", ("4", "boxed")),
        ("$\\boxed{\\{1, 2\\}}$", ("\\{1, 2\\}", "boxed")),
        ("\\boxed{}", ("\\boxed{}", "column")),
        ("42", ("42", "column")),
    ],
)
def test_the_answer_of_a_worked_solution(text, expected):
    assert cleaning.worked_answer(text) == expected


def test_the_last_box_costs_little():
    start = time.process_time()  # this process's own time: other processes do not count
    assert extract_boxed("\\boxed{" * 50_000) is None
    assert time.process_time() - start < 1
    assert extract_boxed("\\boxed{" * 9 + "x}" * 9) == "x"


def test_a_long_solution_has_a_short_gold():
    assert cleaning.clean_answer("word " * 500 + "\\boxed{7}") == ("7", "")
    assert cleaning.clean_answer("word " * 500) == ("", "answer_too_long")
    assert cleaning.clean_answer("<answer>\\boxed{B}</answer>") == ("B", "")


def test_lists_that_strings_spell_out():
    assert (
        cleaning.spelled_list("['a', 'b']") == ["a", "b"]
        and cleaning.spelled_list("[0, 1]") == "[0, 1]"
    )
    assert (
        cleaning.spelled_list("[2, 1]", (object,)) == [2, 1]
        and cleaning.spelled_list("[2, x]") == "[2, x]"
    )


@pytest.mark.parametrize("words", [2, 3, 4, 5])
def test_a_gold_of_more_than_three_words_goes_to_the_judge(words):
    gold = " ".join(["red", "car", "left", "lane", "now"][:words])
    assert cleaning.is_free_form(gold) is (words > 3)
    assert cleaning.is_free_form(f"\\frac{{1}}{{2}} {gold} 7") is (words > 3)
