"""The 31 benchmarks of the paper (App. B.2, Tables 5-7) as data: where they are, what columns say, who scores them.

Decisions where the paper is silent:
1. `average` names the group whose means are averaged into the score: MMMU-Pro over its three configs, CharXiv over its
   two halves, C-Eval over subjects, MVBench over tasks, MultiChallenge over axes, OCRBench v2 over capabilities. All
   others are means over rows; what else is usual stands beside them: DynaMath's worst case (the paper's numbers, 70.5
   for the 27B teacher, look like it), We-Math's four ways, VLMs-are-Blind by task, MMLU-Redux without wrong rows.
2. MathVerse is its five versions with an image. MMLU-Redux keeps all rows, with corrected golds.
"""

from dataclasses import KW_ONLY, dataclass
from functools import partial

FAMILIES = ("vlm", "llm", "video")


@dataclass(frozen=True)
class Benchmark:
    name: str  # on the command line and in the records
    paper: str  # in the paper's tables
    _: KW_ONLY
    family: str
    source: str  # hub id
    size: int  # questions in the published set
    scorer: str = "answer"  # a name in scorers.RULES or scorers.JUDGES
    moved: tuple[str, ...] = ()  # where it has moved to: tried next
    revision: str | None = None
    configs: tuple[str, ...] = ("",)  # "*": all that there are, one a subject
    splits: tuple[str, ...] = ("test",)
    every_split: bool = False  # each is a part of the set; else the first that there is
    withheld: str = ""  # said where answers are missing
    terms: str = "see its card"  # licence or gate
    # Columns; in `groups` "a.b" is a nested field.
    question: str = "question"
    answers: tuple[str, ...] = ("answer",)  # two: of rows with options, of rows without
    options: str | tuple[str, ...] = ""  # one column (a list, a list as a string, "A. x;B. y", a dict) or one each
    drawn: int = 0  # options whose texts stand in the question or only in the picture
    shuffled: bool = False
    encoding: str = "letter"  # of a gold among options: letter, index (0-based) or text
    kind: tuple = ()  # column, its values in rows with options, in rows without ("*": any other)
    images: tuple[str, ...] = ()
    video: str = ""
    subtitles: bool = False
    needs: tuple[str, ...] = ()  # further columns that the scorer reads
    groups: tuple[str, ...] = ()  # columns of the numbers by category
    average: str = ""  # the group over whose means the score is the mean; none: over rows
    together: str = ""  # rows that are scored together have one value here
    where: tuple[str, str] | None = None  # (column, ending): only these rows
    strip: str = ""  # pattern of a wish for a format in the rows
    clean: bool = True  # False: a wish for a format is part of the task
    judge_question: str = ""  # column with the question as a judge should see it
    prepare: str = ""  # a function in rows.PREPARE, for what columns cannot say

    @property
    def ids(self) -> tuple[str, ...]:
        return (self.source, *self.moved)


TEST = "the answers of the test split are not public"
# VLMs-are-Blind: a wish for curly brackets or digits goes; "(row, column)" and "Yes/No" change the answer and stay.
BLIND_WISH = (
    r"(?i)\s*(?:\band\s+|\bplease\s+)?\b(?:answer|put|provide)\b[^.?!{}]*"
    r"(?:numerical format\.|curly brackets[^{}]*\{[^}]*\}(?:\s*columns=\{\d+\})?\.?)"
)
BLIND_TASKS = {  # the form of the answer
    "circled letter": "letter", "line plot intersections": "number", "nested squares": "number",
    "olympic counting - circles": "number", "olympic counting - pentagons": "number", "subway connections": "number",
    "touching circles": "yes/no", "counting grid - blank grids": "pair", "counting grid - word grids": "pair",
}  # fmt: skip
OCR_CAPABILITIES = {kind: capability for capability, kinds in (  # OCRBench v2: types without their language
    ("recognition", "text recognition, fine-grained text recognition, full-page OCR"),
    ("detection", "text grounding, VQA with position"), ("spotting", "text spotting"),
    ("relations", "key information extraction, key information mapping, handwritten answer extraction"),
    ("elements", "document parsing, chart parsing, table parsing, formula recognition"),
    ("calculation", "math QA, text counting"), ("understanding", "document classification, cognition VQA, diagram QA"),
    ("knowledge", "reasoning VQA, science QA, APP agent, ASCII art classification, text translation"),
) for kind in kinds.split(", ")}  # fmt: skip
# MVBench's tasks, with the part of the path of their videos that tells them from others of the same file name.
MVBENCH = dict(task.split(":") for task in """action_antonym:ssv2_video action_count:perception action_localization:sta
    action_prediction:star action_sequence:star character_order:perception counterfactual_inference:clevrer
    egocentric_navigation:vlnqa episodic_reasoning:tvqa fine_grained_action:Moments_in_Time_Raw
    fine_grained_pose:nturgbd moving_attribute:clevrer moving_count:clevrer moving_direction:clevrer
    object_existence:clevrer object_interaction:star object_shuffle:perception scene_transition:scene_qa
    state_change:perception unexpected_action:FunQA_test""".split())

VLM, LLM, VIDEO = (partial(Benchmark, family=family) for family in FAMILIES)
IMAGE, DECODED = dict(images=("image",)), dict(images=("decoded_image",))
OCR = dict(
    IMAGE, source="ling99/OCRBench_v2", scorer="ocrbench", answers=("answers",), groups=("capability", "type"),
    average="capability", needs=("type", "eval", "bbox", "bbox_list", "content"), clean=False, prepare="ocrbench",
)  # fmt: skip
VIDEO_MME = dict(
    source="lmms-lab/Video-MME", size=2700, moved=("lmms-eval/Video-MME",), configs=("videomme",), options="options",
    video="videoID", together="videoID", groups=("duration", "domain", "sub_category", "task_type"),
)  # fmt: skip
METADATA = tuple(f"metadata.{key}" for key in "language source category task context grade skills".split())

BENCHMARKS = (
    VLM("ai2d", "AI2D", source="lmms-lab/ai2d", size=3088, moved=("lmms-lab-encoder/ai2d",), options="options",
        encoding="index", **IMAGE),
    VLM("babyvision", "BabyV", source="UnipatAI/BabyVision", size=388, splits=("train",), options="options",
        answers=("choiceAns", "blankAns"), encoding="index", kind=("ansType", ("choice",), ("blank",)),
        groups=("type", "subtype"), **IMAGE),
    VLM("charxiv", "CharXiv", source="princeton-nlp/CharXiv", size=5000, scorer="charxiv", splits=("validation",),
        withheld=TEST, needs=("reasoning_q", "reasoning_a", "reasoning_a_type", "subplot_loc", "subplot_row",
        "subplot_col", *(f"descriptive_{part}{i}" for part in "qa" for i in range(1, 5))), clean=False,
        groups=("half", "rubric", "category"), average="half", prepare="charxiv", **IMAGE),
    VLM("dynamath", "DynaM", source="DynaMath/DynaMath_Sample", size=5010, scorer="dynamath", every_split=True,
        splits=tuple(f"sample_variant{i}" for i in range(1, 11)), answers=("ground_truth",), drawn=5,
        kind=("answer_type", ("multiple choice",), ("float", "text")), needs=("answer_type",), together="id",
        groups=("subject", "knowledge_level", "split"), **DECODED),
    VLM("embspatial", "EmbSp", source="FlagEval/EmbSpatial-Bench", size=3640, options="answer_options",
        encoding="index", groups=("relation", "data_source"), **IMAGE),
    VLM("infovqa", "InfoVQA", source="lmms-lab/DocVQA", size=2801, moved=("lmms-lab-encoder/DocVQA",), scorer="anls",
        configs=("InfographicVQA",), splits=("validation",), withheld=TEST, answers=("answers",),
        groups=("answer_type", "operation/reasoning"), **IMAGE),
    VLM("mathverse", "MVerse", source="CaraJ/MathVerse-lmmseval", size=3940, configs=("testmini",), drawn=4,
        splits=("testmini",), kind=("question_type", ("multi-choice",), ("free-form",)),
        judge_question="question_for_eval",
        groups=("problem_version", "question_type", "metadata.subject", "metadata.subfield"), **IMAGE),
    VLM("mathvision", "MVision", source="MathLLMs/MathVision", size=3040, options="options",
        groups=("level", "subject"), **DECODED),
    VLM("mathvista", "MVista", source="AI4Math/MathVista", size=1000, scorer="mathvista", splits=("testmini",),
        withheld=TEST, options="choices", encoding="text", needs=("answer_type", "precision", "unit"),
        kind=("question_type", ("multi_choice",), ("free_form",)), prepare="mathvista",
        groups=("question_type", "answer_type", *METADATA), **DECODED),
    VLM("mmmu_pro", "MMMUPro", source="MMMU/MMMU_Pro", size=5190, options="options",
        configs=("standard (4 options)", "standard (10 options)", "vision"), groups=("config", "subject"),
        average="config", images=("image", *(f"image_{i}" for i in range(1, 8)))),
    VLM("mmvet", "MM-Vet", source="lmms-lab/MMVet", size=218, moved=("lmms-lab-encoder/MMVet",), scorer="mmvet",
        needs=("capability",), groups=("capability",), prepare="mmvet", **IMAGE),
    VLM("ocrbench_en", "OCREN", size=7400, where=("type", " en"), **OCR),
    VLM("ocrbench_zh", "OCRZH", size=2600, where=("type", " cn"), **OCR),
    VLM("visualpuzzles", "VisP", source="neulab/VisualPuzzles", size=1168, splits=("train", "test"),
        options="options", drawn=4, groups=("category", "difficulty"), **IMAGE),
    VLM("vlmsareblind", "VBlind", source="XAI/vlmsareblind", size=8016, scorer="blind", splits=("valid",),
        question="prompt", answers=("groundtruth",), needs=("task",), groups=("group",), strip=BLIND_WISH,
        prepare="blind", **IMAGE),
    VLM("wemath", "WeMath", source="We-Math/We-Math", size=1740, splits=("testmini",), options="option",
        images=("image_path",), needs=("key",), groups=("key",), together="ID"),
    LLM("aime25", "AIME25", source="opencompass/AIME2025", size=30, configs=("AIME2025-I", "AIME2025-II"),
        groups=("config",)),
    LLM("aime26", "AIME26", source="MathArena/aime_2026", size=30, splits=("train",), question="problem",
        terms="cc-by-nc-sa"),
    LLM("ceval", "CEval", source="ceval/ceval-exam", size=1346, configs=("*",), splits=("val",), withheld=TEST,
        options=("A", "B", "C", "D"), groups=("config",), average="config", terms="cc-by-nc-sa"),
    LLM("gpqa", "GPQA-D", source="Idavidrein/gpqa", size=198, configs=("gpqa_diamond",), splits=("train",),
        question="Question", answers=("Correct Answer",), encoding="text", shuffled=True, terms="gated",
        options=("Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))),
        groups=("Subdomain", "High-level domain")),
    LLM("hle", "HLE", source="cais/hle", size=2500, scorer="hle", groups=("category", "answer_type"),
        terms="gated (believed)", **IMAGE),
    LLM("imo_answerbench", "IMO-AB", source="OpenEvals/IMO-AnswerBench", size=400, splits=("train",),
        question="Problem", answers=("Short Answer",), groups=("Category", "Subcategory"), terms="cc-by-4.0"),
    LLM("mmlu", "MMLU", source="cais/mmlu", size=14042, configs=("all",), options="choices", encoding="index",
        groups=("subject",)),
    LLM("mmlu_pro", "MMLU-Pro", source="TIGER-Lab/MMLU-Pro", size=12032, options="options", groups=("category",)),
    LLM("mmlu_redux", "MMLU-Rd", source="edinburgh-dawg/mmlu-redux-2.0", size=5700, configs=("*",),
        options="choices", encoding="index", needs=("error_type", "correct_answer"), prepare="redux",
        groups=("config", "error_type")),
    LLM("multichallenge", "MultiCh", source="ScaleAI/MultiChallenge", size=266, scorer="multichallenge",
        question="conversation", answers=("pass_criteria",), needs=("target_question", "axis"), groups=("axis",),
        average="axis", clean=False, prepare="multichallenge", terms="cc-by-4.0"),
    VIDEO("mmvu", "MMVU", source="yale-nlp/MMVU", size=1000, moved=("lmms-eval/MMVU",), scorer="mmvu",
        splits=("validation",), options="choices", video="video",
        kind=("question_type", ("multiple-choice",), ("open-ended",)), groups=("question_type", "metadata.subject")),
    VIDEO("mvbench", "MVBench", source="OpenGVLab/MVBench", size=4000, revision="video", configs=tuple(MVBENCH),
        splits=("train",), options="candidates", encoding="text", video="video", groups=("config",),
        average="config"),
    VIDEO("videomme", "VMME", **VIDEO_MME),
    VIDEO("videomme_sub", "VMMES", subtitles=True, **VIDEO_MME),
    VIDEO("videommmu", "VMMMU", source="lmms-lab/VideoMMMU", size=900, moved=("lmms-eval/VideoMMMU",),
        configs=("Perception", "Comprehension", "Adaptation"), scorer="videommmu", options="options", video="id",
        kind=("question_type", ("multiple-choice", "perception"), ("*",)), groups=("config",), terms="gated",
        **IMAGE),
)  # fmt: skip
BY_NAME = {entry.name: entry for entry in BENCHMARKS}
