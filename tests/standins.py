"""Small stand-ins for the 31 benchmarks, in the layouts and odd encodings of the real ones; all of it made up here.

`build(root)` writes root/<owner>/<name>. RIGHT holds a right final answer for each question in the order of the rows,
WRONG a wrong one that a rule can settle (None: this scorer has no rule that settles wrong answers).
"""

import base64
import io
import json
import zipfile
from pathlib import Path

import datasets
from PIL import Image

from suite.entries import BY_NAME

MVBENCH = BY_NAME["mvbench"].configs
COLOURS = ("red", "lime", "blue", "black")


def image(colour: str = "red", size: int = 32) -> Image.Image:
    return Image.new("RGB", (size, size), colour)


def data_uri(colour: str) -> str:
    image(colour).save(file := io.BytesIO(), "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def parquet(rows: list[dict], path: Path, **features) -> None:
    """Rows as a parquet file; image columns are stored as the hub stores them, bytes with a feature in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(rows)
    pictures = [name for name in rows[0] if any(isinstance(row[name], Image.Image) for row in rows)]
    for name in pictures:
        table = table.cast_column(name, datasets.Image())
    for name, feature in features.items():
        table = table.cast_column(name, feature)
    table.to_parquet(str(path))


def write_json(rows: list[dict], path: Path, lines: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + "\n" if lines else json.dumps(rows), encoding="utf-8")


def readme(folder: Path, configs: dict[str, dict[str, str]]) -> None:
    """The header of a card: {config: {split: pattern}}."""
    lines = ["---", "license: other", "configs:"]
    for config, files in configs.items():
        lines += [f"- config_name: {json.dumps(config)}", "  data_files:"]
        for split, pattern in files.items():
            lines += [f"  - split: {split}", f"    path: {json.dumps(pattern)}"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("\n".join([*lines, "---", "A stand-in."]), encoding="utf-8")


def gif(path: Path, frames: int = 4) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    shots = [image(COLOURS[i % 4]) for i in range(frames)]
    shots[0].save(path, save_all=True, append_images=shots[1:], duration=500)
    return path.read_bytes()


def ai2d(root: Path) -> None:
    rows = [  # the answer: a 0-based index as a string
        {"question": "Which colour is it?", "options": ["lime", "red", "blue"], "answer": "1", "image": image()},
        {"question": "What eats the fox?", "options": ["hare", "owl", "ant", "wolf"], "answer": "3", "image": image()},
    ]
    parquet(rows, root / "lmms-lab-encoder/ai2d/data/test-00000-of-00001.parquet")  # only the id it has moved to


def babyvision(root: Path) -> None:
    base = {"taskId": 1, "type": "Spatial", "subtype": "3D", "coT": ""}
    rows = [
        {**base, "question": "Which piece fits?", "image": image(), "ansType": "choice",
         "options": ["round", "square", "flat"], "choiceAns": 2, "blankAns": None},
        {**base, "question": "How many dots are there?", "image": image(), "ansType": "blank", "options": [],
         "choiceAns": None, "blankAns": "7"},
    ]  # fmt: skip
    parquet(rows, root / "UnipatAI/BabyVision/data/train-00000-of-00001.parquet")


def charxiv(root: Path) -> None:
    base = {"category": "cs", "year": "2023", "figure_path": "a.jpg", "num_subplots": 1, "reasoning_q_source": 3,
            "descriptive_a1": "Loss", "descriptive_a2": "Not Applicable", "descriptive_a3": "2 by 3",
            "descriptive_a4": "6"}
    asked = {"descriptive_q1": 1, "descriptive_q2": 10, "descriptive_q3": 18, "descriptive_q4": 19}
    rows = [
        {**base, **asked, "image": image(), "subplot_row": 0, "subplot_col": 0, "subplot_loc": None,
         "reasoning_q": "What is the mean?", "reasoning_a": "2.50", "reasoning_a_type": 4},
        {**base, **asked, "image": image("blue"), "subplot_row": 1, "subplot_col": 2, "subplot_loc": "the inset",
         "reasoning_q": "Which curve is highest?", "reasoning_a": "SGD", "reasoning_a_type": 1},
    ]  # fmt: skip
    folder = root / "princeton-nlp/CharXiv"
    parquet(rows, folder / "val.parquet")
    parquet([{**row, "reasoning_a": None} for row in rows], folder / "test.parquet")  # answers withheld
    readme(folder, {"default": {"validation": "val.parquet", "test": "test.parquet"}})


def dynamath(root: Path) -> None:
    for variant in range(1, 11):
        rows = [
            {"id": "1", "question": f"What is {variant} + 0.5?", "image": "a.png", "decoded_image": image(),
             "ground_truth": str(variant + 0.5), "answer_type": "float", "subject": "arithmetic",
             "knowledge_level": "elementary school"},
            {"id": "2", "question": "Which curve? (A) f (B) g", "image": "b.png", "decoded_image": image("lime"),
             "ground_truth": "B", "answer_type": "multiple choice", "subject": "algebra",
             "knowledge_level": "high school"},
        ]  # fmt: skip
        path = f"DynaMath/DynaMath_Sample/data/sample_variant{variant}-00000-of-00001.parquet"
        parquet(rows, root / path)


def embspatial(root: Path) -> None:
    base = {"question_id": "mp3d_0", "data_source": "mp3d", "image": image()}
    rows = [
        {**base, "question": "Where is the lamp?", "answer_options": ["far", "near", "left", "right"], "answer": 0,
         "relation": "far"},
        {**base, "question": "Where is the cup?", "answer_options": ["above", "under", "left", "right"], "answer": 3,
         "relation": "right"},
    ]  # fmt: skip
    parquet(rows, root / "FlagEval/EmbSpatial-Bench/data/test-00000-of-00001.parquet")


def infovqa(root: Path) -> None:
    base = {"image": image(), "answer_type": ["single span"], "operation/reasoning": [], "image_url": "", "ocr": ""}
    rows = [
        {**base, "questionId": "1", "question": "Which city leads?", "answers": ["New York", "NYC"]},
        {**base, "questionId": "2", "question": "What share?", "answers": ["45%"]},
    ]
    folder = root / "lmms-lab/DocVQA/InfographicVQA"
    parquet(rows, folder / "validation-00000-of-00001.parquet")
    parquet([{**row, "answers": None} for row in rows], folder / "test-00000-of-00001.parquet")


def mathverse(root: Path) -> None:
    base = {"sample_index": "1", "problem_index": "1", "query_wo": "", "query_cot": "",
            "metadata": {"split": "testmini", "source": "s", "subject": "Plane Geometry", "subfield": "Angle"}}
    choices = "Find the angle.\nChoices:\nA:30°\nB:60°\nC:90°\nD:120°"
    rows = [
        {**base, "question": choices, "question_for_eval": choices, "image": image(), "answer": "C",
         "question_type": "multi-choice", "problem_version": "Text Lite"},
        {**base, "question": "", "question_for_eval": choices, "image": image(), "answer": "A",
         "question_type": "multi-choice", "problem_version": "Vision Only"},
        {**base, "question": "Find x.", "question_for_eval": "Find x.", "image": image(), "answer": "2\\sqrt{3}",
         "question_type": "free-form", "problem_version": "Text Dominant"},
    ]  # fmt: skip
    folder = root / "CaraJ/MathVerse-lmmseval"
    parquet(rows, folder / "testmini.parquet")
    parquet([row | {"image": image()} for row in rows], folder / "testmini_text_only.parquet")
    readme(folder, {"testmini": {"testmini": "testmini.parquet"},
                    "testmini_text_only": {"text_only": "testmini_text_only.parquet"}})  # fmt: skip


def mathvision(root: Path) -> None:
    base = {"image": "a.jpg", "decoded_image": image(), "level": 2, "solution": None}
    rows = [
        {**base, "id": "1", "question": "Which one?\n<image1>", "options": ["A", "B", "C", "D", "E"], "answer": "D",
         "subject": "counting"},
        {**base, "id": "2", "question": "How long is it? <image1>", "options": ["$\\frac{1}{2}$", "$2$", "$3$"],
         "answer": "A", "subject": "metric geometry"},
        {**base, "id": "3", "question": "How many? <image1>", "options": [], "answer": "12", "subject": "counting"},
    ]  # fmt: skip
    parquet(rows, root / "MathLLMs/MathVision/data/test-00000-of-00001.parquet")


def mathvista(root: Path) -> None:
    metadata = {"category": "math-targeted-vqa", "context": "table", "grade": "daily life", "language": "english",
                "skills": ["arithmetic", "logical"], "source": "s", "split": "testmini", "task": "t"}
    base = {"image": "a.jpg", "decoded_image": image(), "unit": None, "precision": None, "metadata": metadata,
            "choices": None, "question_type": "free_form", "query": "Hint: ..."}
    rows = [  # the gold of a choice is its text
        {**base, "pid": "1", "question": "Which?", "choices": ["larger", "smaller"], "answer": "smaller",
         "question_type": "multi_choice", "answer_type": "text"},
        {**base, "pid": "2", "question": "How many?", "answer": "4", "answer_type": "integer"},
        {**base, "pid": "3", "question": "How long?", "answer": "0.50", "precision": 1.0, "unit": "cm",
         "answer_type": "float"},
        {**base, "pid": "4", "question": "Which years?", "answer": "[2001, 2003]", "answer_type": "list"},
    ]  # fmt: skip
    parquet(rows, root / "AI4Math/MathVista/data/testmini-00000-of-00001.parquet")
    parquet([{**row, "answer": ""} for row in rows], root / "AI4Math/MathVista/data/test-00000-of-00001.parquet")


def mmmu_pro(root: Path) -> None:
    folder, names = root / "MMMU/MMMU_Pro", ("standard (4 options)", "standard (10 options)", "vision")
    base = {"explanation": "", "topic_difficulty": "Easy", "img_type": "['Plots']"}
    rows = [
        {**base, "id": "test_Art_1", "question": "Look at <image 1>. What is it?", "subject": "Art",
         "options": "['a cat', \"the owner's dog\", 'a bird', 'a cow']", "answer": "B"},
        {**base, "id": "test_Art_2", "question": "Compare <image 1> with <image 2>: which is warmer?", "subject": "Art",
         "options": "['<image 2>', '<image 1>', 'neither']", "answer": "B"},
    ]  # fmt: skip
    rows = [row | {f"image_{i}": None for i in range(1, 8)} | {"image_1": image()} for row in rows]
    rows[1]["image_2"] = image("blue")
    parquet(rows, folder / names[0] / "test-00000-of-00001.parquet")
    parquet(rows, folder / names[1] / "test-00000-of-00001.parquet")
    seen = [{"id": "test_Art_3", "image": image(), "options": "['x', 'y']", "answer": "A", "subject": "Art"}]
    parquet(seen, folder / names[2] / "test-00000-of-00001.parquet")
    readme(folder, {name: {"test": f"{name}/test-*"} for name in names})


def mmvet(root: Path) -> None:
    rows = [
        {"question_id": "v1_0", "image": image(), "question": "Solve it.", "answer": "-1 <AND> -5",
         "capability": "ocr,math"},
        {"question_id": "v1_1", "image": None, "question": "Who is it?", "answer": "a lynx <OR> a wild cat",
         "capability": "rec,know"},
    ]  # fmt: skip
    parquet(rows, root / "lmms-lab/MMVet/data/test-00000-of-00001.parquet")


def ocrbench(root: Path) -> None:
    base = {"dataset_name": "d", "image": image(), "eval": "None", "bbox": None, "bbox_list": None, "content": None}
    rows = [
        {**base, "id": 0, "type": "text recognition en", "question": "What does it say?", "answers": ["Exit"]},
        {**base, "id": 1, "type": "math QA en", "question": "Which?", "answers": ["B"], "eval": "multiple choice"},
        {**base, "id": 2, "type": "text grounding en", "question": "Where?", "answers": ["0", "0", "9", "9"],
         "bbox": [0, 0, 9, 9]},
        {**base, "id": 3, "type": "cognition VQA cn", "question": "几个?", "answers": ["三"]},
        {**base, "id": 4, "type": "formula recognition cn", "question": "公式?", "answers": ["x^2"]},
    ]  # fmt: skip
    parquet(rows, root / "ling99/OCRBench_v2/data/test-00000-of-00001.parquet")


def visualpuzzles(root: Path) -> None:
    rows = [
        {"id": 1, "question": "Which comes next?", "options": ["circle", "square", "star", "line"], "answer": "C",
         "image": image()},
        {"id": 2, "question": "Which is odd?", "options": None, "answer": "D", "image": image()},  # drawn
    ]  # fmt: skip
    parquet(rows, root / "neulab/VisualPuzzles/data/test-00000-of-00001.parquet")  # the split's newer name


def vlmsareblind(root: Path) -> None:
    prompts = {
        "Line Plot Intersections": ("How often do they touch? Answer with a number in curly brackets, e.g., {5}.", "2"),
        "Counting Grid - Word Grids": ("Count the number of rows and columns and answer with numbers in curly "
                                       "brackets. For example, rows={5} columns={6}", "3,4"),
        "Touching Circles": ("Are the two circles touching each other? Answer with Yes/No.", "Yes"),
        "Circled Letter": ("Which letter is circled? Please provide your answer in curly brackets, e.g. {a}", "w"),
    }  # fmt: skip
    rows = [{"task": task, "image": image(), "prompt": prompt, "groundtruth": gold, "metadata": "{}"}
            for task, (prompt, gold) in prompts.items()]  # fmt: skip
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"valid": table}).save_to_disk(root / "XAI/vlmsareblind")


def wemath(root: Path) -> None:
    base = {"split": "testmini", "knowledge concept": "k", "question number": 1, "knowledge concept description": ""}
    option = "A. 300, 400;B. 3.5;C. 6; or more;D. 8;E. No correct answer"  # one string
    rows = [{**base, "ID": "7", "question": f"Step {key}?", "option": option, "answer": letter, "image_path": image(),
             "key": key} for key, letter in (("2steps_1", "A"), ("2steps_2", "B"), ("2steps_multi", "E"))]  # fmt: skip
    parquet(rows, root / "We-Math/We-Math/data/testmini-00000-of-00001.parquet")


def aime25(root: Path) -> None:
    folder = root / "opencompass/AIME2025"
    write_json([{"question": "Find x.", "answer": "070"}], folder / "aime2025-I.jsonl")
    write_json([{"question": "Find y.", "answer": "204"}], folder / "aime2025-II.jsonl")
    readme(folder, {f"AIME2025-{part}": {"test": f"aime2025-{part}.jsonl"} for part in ("I", "II")})


def aime26(root: Path) -> None:
    rows = [{"problem_idx": i, "problem": "Find z.", "answer": answer} for i, answer in enumerate((277, 3), 1)]
    parquet(rows, root / "MathArena/aime_2026/data/train-00000-of-00001.parquet")


def ceval(root: Path) -> None:
    row = {"id": 0, "question": "哪一个?", "A": "北京", "B": "上海", "C": "广州", "D": "成都", "explanation": ""}
    for subject, letter in (("law", "B"), ("logic", "C")):
        folder = root / "ceval/ceval-exam" / subject
        parquet([{**row, "answer": letter}], folder / "val-00000-of-00001.parquet")
        parquet([{**row, "answer": "D"}], folder / "dev-00000-of-00001.parquet")
        parquet([{**row, "answer": ""}], folder / "test-00000-of-00001.parquet")


def gpqa(root: Path) -> None:
    folder = root / "Idavidrein/gpqa"
    folder.mkdir(parents=True)
    header = "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3,High-level domain\n"
    rows = 'Which particle?,"a muon\n",a pion,a kaon,an electron,Physics\nWhich mass?,3 kg,4 kg,5 kg,6 kg,Physics\n'
    (folder / "gpqa_diamond.csv").write_text(header + rows, encoding="utf-8")
    (folder / "gpqa_main.csv").write_text(header + rows, encoding="utf-8")


def hle(root: Path) -> None:
    rows = [
        {"id": "a", "question": "Who?", "image": "", "answer": "Noether", "answer_type": "exactMatch",
         "category": "Math", "rationale": ""},
        {"id": "b", "question": "Which?\n\nAnswer Choices:\nA. one\nB. two", "image": data_uri("blue"), "answer": "B",
         "answer_type": "multipleChoice", "category": "Physics", "rationale": ""},
    ]  # fmt: skip
    parquet(rows, root / "cais/hle/data/test-00000-of-00001.parquet")


def imo_answerbench(root: Path) -> None:
    rows = [
        {"Problem ID": "imo-1", "Problem": "Find all n.", "Short Answer": "$2^{n-1}$", "Category": "Algebra",
         "Subcategory": "s", "Source": "x"},
        {"Problem ID": "imo-2", "Problem": "How many?", "Short Answer": "12", "Category": "Combinatorics",
         "Subcategory": "s", "Source": "x"},
    ]  # fmt: skip
    write_json(rows, root / "OpenEvals/IMO-AnswerBench/answerbench.json", lines=False)


def mmlu(root: Path) -> None:
    label = datasets.ClassLabel(names=["A", "B", "C", "D"])
    rows = [
        {"question": "Which metal?", "subject": "anatomy", "choices": ["iron", "wood", "glass", "wool"], "answer": 0},
        {"question": "Which number?", "subject": "law", "choices": ["1", "2", "3", "4"], "answer": 2},
    ]
    parquet(rows, root / "cais/mmlu/all/test-00000-of-00001.parquet", answer=label)
    parquet(rows, root / "cais/mmlu/anatomy/test-00000-of-00001.parquet", answer=label)


def mmlu_pro(root: Path) -> None:
    ten = [f"{n} volts" for n in range(10, 20)]
    rows = [
        {"question_id": 1, "question": "How much?", "options": ten, "answer": "J", "answer_index": 9,
         "category": "physics"},
        {"question_id": 2, "question": "Which?", "options": ["up", "down", "side"], "answer": "B", "answer_index": 1,
         "category": "law"},
    ]  # fmt: skip
    folder = root / "TIGER-Lab/MMLU-Pro/data"
    parquet(rows, folder / "test-00000-of-00001.parquet")
    parquet(rows, folder / "validation-00000-of-00001.parquet")


def mmlu_redux(root: Path) -> None:
    base = {"question": "Which?", "choices": ["one", "two", "three", "four"], "answer": 0, "potential_reason": None}
    rows = [
        {**base, "error_type": "ok", "correct_answer": None},
        {**base, "error_type": "no_correct_answer", "correct_answer": "five"},
        {**base, "error_type": "wrong_groundtruth", "correct_answer": "C"},
        {**base, "error_type": "multiple_correct_answers", "correct_answer": "(1, 3)"},
    ]
    parquet(rows, root / "edinburgh-dawg/mmlu-redux-2.0/anatomy/test-00000-of-00001.parquet")
    again = [{**base, "error_type": "multiple_correct_answers", "correct_answer": "A and B"},
             {**base, "error_type": "wrong_groundtruth", "correct_answer": ""}]  # fmt: skip
    parquet(again, root / "edinburgh-dawg/mmlu-redux-2.0/virology/test-00000-of-00001.parquet")


def multichallenge(root: Path) -> None:
    turns = [("user", "I am allergic to nuts."), ("assistant", "Noted."), ("user", "Suggest a cake.")]
    listed = [{"role": role, "content": text} for role, text in turns]
    rows = [{"question_id": str(i), "axis": axis, "conversation": listed, "target_question": "Is it free of nuts?",
             "pass_criteria": gold} for i, (axis, gold) in enumerate((("INFERENCE_MEMORY", "YES"),
             ("SELF_COHERENCE", "YES"), ("SELF_COHERENCE", "NO")))]  # fmt: skip
    write_json(rows, root / "ScaleAI/MultiChallenge/data/test.jsonl")


def mmvu(root: Path) -> None:
    folder, url = root / "yale-nlp/MMVU", "https://huggingface.co/datasets/yale-nlp/MMVU/resolve/main/videos"
    base = {"youtube_url": "", "metadata": {"subject": "Art", "textbook": "", "rationale": "", "knowledge": []}}
    empty = dict.fromkeys("ABCDE", "")
    rows = [
        {**base, "id": "1", "video": f"{url}/Art/0.gif", "question_type": "multiple-choice", "question": "Which?",
         "choices": dict(zip("ABCDE", ("oil", "ink", "wax", "clay", "wood"), strict=True)), "answer": "C"},
        {**base, "id": "2", "video": f"{url}/Law/0.gif", "question_type": "open-ended", "question": "What is it?",
         "choices": empty, "answer": "double jeopardy"},
    ]  # fmt: skip
    write_json(rows, folder / "validation.json", lines=False)
    gif(folder / "videos/Art/0.gif")
    gif(folder / "videos/Law/0.gif", 3)


def mvbench(root: Path) -> None:
    folder = root / "OpenGVLab/MVBench"
    for task, place in MVBENCH.items():
        rows = [{"video": "clip.gif", "question": "What happens?", "candidates": ["it falls", "it rises", "nothing"],
                 "answer": "it rises"}]  # fmt: skip
        if task == "action_sequence":
            rows[0] |= {"start": 0.5, "end": 1.0, "fps": 2.0}
        if task == "episodic_reasoning":  # a folder of pictures
            rows[0] |= {"video": "frames_0", "start": 0.0, "end": 1.0}
            for i in range(1, 6):
                path = folder / f"video/tvqa/frames_0/{i:05d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                image(COLOURS[i % 4]).save(path)
        else:
            gif(folder / f"video/{place}/clip.gif")
        write_json(rows, folder / f"json/{task}.json", lines=False)
    readme(folder, {task: {"train": f"json/{task}.json"} for task in MVBENCH})


def videomme(root: Path) -> None:
    folder = root / "lmms-lab/Video-MME"
    base = {"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Art", "url": "",
            "task_type": "Counting Problem", "options": ["A. Two.", "B. Three.", "C. Four.", "D. Five."]}
    rows = [{**base, "videoID": name, "question_id": f"{name}-1", "question": "How many?", "answer": letter}
            for name, letter in (("aaa", "B"), ("bbb", "D"))]  # fmt: skip
    parquet(rows, folder / "videomme/test-00000-of-00001.parquet")
    srt = "1\n00:00:00,000 --> 00:00:00,600\n<font color=white>hello</font>\n\n2\n00:01:00,000 --> 00:02:00,000\nlate\n"
    with zipfile.ZipFile(folder / "videos_chunked_01.zip", "w") as archive:
        archive.writestr("data/aaa.gif", gif(folder / "made.gif"))
        archive.writestr("data/bbb.GIF", gif(folder / "made.gif"))
    (folder / "made.gif").unlink()
    with zipfile.ZipFile(folder / "subtitle.zip", "w") as archive:
        archive.writestr("subtitle/aaa.srt", srt)  # none for bbb


def videommmu(root: Path) -> None:
    folder = root / "lmms-lab/VideoMMMU"
    for config in ("Perception", "Comprehension", "Adaptation"):
        name = f"test_Art_{config}"
        row = {"id": name, "question": "What does <image 1> show?" if config == "Adaptation" else "What is said?",
               "options": ["ink", "oil"], "answer": "B", "question_type": "multiple-choice"}  # fmt: skip
        if config == "Perception":
            row["question_type"] = "perception"
        if config == "Comprehension":
            row |= {"options": [], "answer": "2.50", "question_type": "open"}
        if config == "Adaptation":
            row["image"] = image("lime")
        parquet([row], folder / config / "test-00000-of-00001.parquet")
        gif(folder / f"Art/{name}.gif")


BUILD = (ai2d, babyvision, charxiv, dynamath, embspatial, infovqa, mathverse, mathvision, mathvista, mmmu_pro, mmvet,
         ocrbench, visualpuzzles, vlmsareblind, wemath, aime25, aime26, ceval, gpqa, hle, imo_answerbench, mmlu,
         mmlu_pro, mmlu_redux, multichallenge, mmvu, mvbench, videomme, videommmu)  # fmt: skip


def build(root: Path) -> Path:
    for write in BUILD:
        write(root)
    return root


RIGHT = {
    "ai2d": ["B", "(d)"],
    "babyvision": ["option C", "7"],
    "charxiv": ["2.50", "Loss", "Not Applicable", "2 by 3", "6", "SGD", "Loss", "Not Applicable", "2 by 3", "6"],
    "dynamath": [answer for i in range(1, 11) for answer in (str(i + 0.5), "B")],
    "embspatial": ["A", "right"],
    "infovqa": ["new  york", "\\text{45%}"],
    "mathverse": ["90°", "A", "2\\sqrt{3}"],
    "mathvision": ["D", "\\frac{1}{2}", "12.0"],
    "mathvista": ["(B)", "4", "0.5", "[2001, 2003]"],
    "mmmu_pro": ["the owner's dog", "B", "B", "B.", "A"],
    "mmvet": ["-1 or -5", "a lynx"],
    "ocrbench_en": ["Exit", "B", "(0, 0, 9, 9)"],
    "ocrbench_zh": ["三", "x^2"],
    "visualpuzzles": ["star", "D"],
    "vlmsareblind": ["{2}", "rows={3} columns={4}", "Yes", "{w}"],
    "wemath": ["300, 400", "B", "E. No correct answer"],
    "aime25": ["70", "204"],
    "aime26": ["277", "3"],
    "ceval": ["B", "广州"],
    "gpqa": ["a muon", "3 kg"],
    "hle": ["Emmy Noether", "B"],
    "imo_answerbench": ["2^{n-1}", "12"],
    "mmlu": ["A", "3"],
    "mmlu_pro": ["J", "down"],
    "mmlu_redux": ["A", "five", "C", "D", "two", "A"],
    "multichallenge": ["An apple cake.", "An apple cake.", "A nut cake."],
    "mmvu": ["wax", "double jeopardy"],
    "mvbench": ["B"] * 20,
    "videomme": ["Three.", "D"],
    "videomme_sub": ["B", "Five."],
    "videommmu": ["B", "2.5", "oil"],
}  # fmt: skip
WRONG = {  # that the rule settles; the official judges have none
    "ai2d": ["A", "A and D"], "babyvision": ["A", "8"], "dynamath": ["99", "A"] * 10, "embspatial": ["near", "E"],
    "infovqa": ["Zagreb", "9"], "mathverse": ["B", "B", None], "mathvision": ["A", "2", "13"],
    "mathvista": ["A", "5", "0.7", None], "mmmu_pro": ["a cat", "A", "A", "C", "B"], "visualpuzzles": ["A", "A"],
    "vlmsareblind": ["3", "(4, 3)", "no", "v"], "wemath": ["B", "A", "D"], "aime25": ["71", "7"], "aime26": ["1", "1"],
    "ceval": ["A", "A"], "gpqa": ["a pion", "4 kg"], "imo_answerbench": [None, "13"], "mmlu": ["wood", "4"],
    "mmlu_pro": ["A", "C"], "mmlu_redux": ["B", "two", "A", "A", "C", "B"], "mvbench": ["A"] * 20,
    "videomme": ["A", "A"], "videomme_sub": ["Two.", "A, B"], "videommmu": ["ink", "3", "A"],
}  # fmt: skip
