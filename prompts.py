"""The prompt templates of ZPPO (paper Figs. 8, 16-19), quoted character for character.

Order of every training and evaluation prompt: question, then the BCQ or NCQ block, then the shared
closer, with a blank line between the parts. The caller puts the result into the model's chat
template. This file imports nothing from the rest of the project: copy what you need.

Decisions where the paper is silent:
1. Candidate text is data. `neutralise` changes the tags of the templates inside it, so that it
   cannot close its own block. A model's special tokens (<|im_end|> and the like) are not touched
   here: whoever copies this file must break them up before the chat template is applied, as
   engine/models.py does for every prompt.
2. Listed wrong answers are deduplicated as strings, in order of appearance. If no wrong rollout has
   an answer, the sentence that lists them is left out.
3. Candidates and responses are stripped of surrounding white space.
"""

import random
import re
from collections.abc import Sequence

# Fig. 8: one closer for training and evaluation.
CLOSER = (
    "You FIRST think about the reasoning process as an internal monologue and then provide the "
    "final answer. "
    "The reasoning process MUST BE enclosed within <think> </think> tags. "
    "The final answer MUST BE put in \\boxed{}."
)

# Fig. 17: Binary Candidate-included Question.
BCQ_HEADER = (
    "Here are two candidate responses in <candidate> </candidate> tags to the question above. "
    "One is correct and another is wrong. "
    "Use these as references to help you solve the problem."
)

# Fig. 18: Negative Candidate-included Question.
NCQ_ANSWERS = "The following answers are all WRONG: {answers}."
NCQ_HEADER = "Below are the incorrect reasoning processes in <candidate> </candidate> tags."

# Fig. 16: the frozen teacher rewrites every candidate, correct or wrong, under this prompt.
COMPRESSION = """Compress the response below into a summary (in 5 lines max).
Rules:
- Response is in <response>...</response> tags
- Summary should be in <summary>...</summary> tags and should be in 5 lines max
- Keep ONLY the essential reasoning steps and the final answer
- Remove ALL exploratory text, self-corrections, retries, and filler
- Do NOT re-derive or add new information
- End with the final answer in \\boxed{} format
<response>
{response}
</response>"""

# Fig. 19: the teacher's side of the Hint baseline.
HINT = """\
Read the solved response below and write a concise hint that helps solve the original question. \
Do NOT reveal the final answer, do NOT include any \\boxed{} expression, and do NOT copy the full \
solution. \
Keep only high-level guidance or the key intermediate idea.
<response>
{response}
</response>"""

TAGS = ("candidate", "response", "summary", "think", "hint")
TAG = re.compile(rf"<\s*(/?)\s*({'|'.join(TAGS)})\s*>", re.IGNORECASE)


def neutralise(text: str) -> str:
    """Text that cannot open or close a block of the templates: `</candidate>` -> `[/candidate]`.

    Idempotent. Text without such tags is unchanged.
    """
    return TAG.sub(r"[\1\2]", text)


def plain_prompt(question: str) -> str:
    """Question and closer: the plain prompt of training and of evaluation (Fig. 8)."""
    return f"{question}\n\n{CLOSER}"


def bcq_prompt(question: str, correct: str, wrong: str, rng: random.Random) -> str:
    """Binary Candidate-included Question [Z1] (Fig. 17): two traces as anonymous candidates.

    correct, wrong: compressed traces. rng decides which comes first; nothing in the text says which
    is which.
    """
    candidates = [correct, wrong]
    rng.shuffle(candidates)
    return with_candidates(question, BCQ_HEADER, candidates)


def ncq_prompt(question: str, answers: Sequence[str | None], wrong: Sequence[str]) -> str:
    """Negative Candidate-included Question [Z2] (Fig. 18): all wrong traces of the plain group.

    answers: the parsed answer of each wrong rollout, None where it has none. wrong: the compressed
    traces.
    """
    stripped = [(answer or "").strip() for answer in answers]
    # decision 2: each answer once, in order of appearance
    listed = dict.fromkeys(neutralise(answer) for answer in stripped if answer)
    header = NCQ_HEADER
    if listed:
        boxed = ", ".join(f"\\boxed{{{answer}}}" for answer in listed)
        header = f"{NCQ_ANSWERS.format(answers=boxed)} {NCQ_HEADER}"
    return with_candidates(question, header, wrong)


def with_candidates(question: str, header: str, texts: Sequence[str]) -> str:
    """The question, a block with one <candidate> for each text (Figs. 17, 18), and the closer."""
    # decision 1: a candidate must not close its own block
    safe = [neutralise(text.strip()) for text in texts]
    candidates = [f"<candidate>\n{text}\n</candidate>" for text in safe]
    block = "\n".join([header, *candidates])
    return f"{question}\n\n{block}\n\n{CLOSER}"


def compression_prompt(response: str) -> str:
    """Ask the teacher for a summary of one response (Fig. 16). This prompt has no closer."""
    return COMPRESSION.replace("{response}", neutralise(response.strip()))


def hint_prompt(response: str) -> str:
    """Ask the teacher for an answer-free hint from its own correct response (Fig. 19)."""
    return HINT.replace("{response}", neutralise(response.strip()))


def hinted_prompt(question: str, hint: str) -> str:
    """The question with a teacher's hint in <hint> tags (Hint baseline, Algorithm 5)."""
    block = f"<hint>\n{neutralise(hint.strip())}\n</hint>"
    return f"{question}\n\n{block}\n\n{CLOSER}"
