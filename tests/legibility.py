"""How densely a Python file is written: tokens, long lines, packed statements, longest function.

What counts is how much there is to read, so tokens are counted and not lines. Comments, docstrings
and layout are no tokens. A line of code is a line that holds a token.
"""

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LONG = 100  # characters; a longer line is a long one
PACKED = 3  # devices; a statement with as many is a packed one
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
DEVICES = (
    ast.IfExp,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
    ast.Starred,
    ast.NamedExpr,
    ast.Lambda,
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
WITH_DOCSTRING = (ast.Module, ast.ClassDef, *FUNCTIONS)


@dataclass
class Measure:
    """What is counted in one file, or in several."""

    tokens: int = 0
    code_lines: int = 0
    long_lines: int = 0
    statements: int = 0
    packed: int = 0
    longest: int = 0  # lines of the longest function, docstring included

    @property
    def tokens_per_line(self) -> float:
        return self.tokens / self.code_lines

    @property
    def long_share(self) -> float:
        return self.long_lines / self.code_lines

    @property
    def packed_per_thousand(self) -> float:
        return 1000 * self.packed / self.statements


def measure(text: str) -> Measure:
    """The measure of one file. text: its content."""
    tree = ast.parse(text)
    docstrings = docstring_lines(tree)
    found = Measure()
    code_lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in LAYOUT or token.start[0] in docstrings:
            continue
        found.tokens += 1
        code_lines |= lines_between(token.start[0], token.end[0])
    lines = text.splitlines()
    found.code_lines = len(code_lines)
    found.long_lines = sum(len(lines[number - 1]) > LONG for number in code_lines)
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            found.longest = max(found.longest, node.end_lineno - node.lineno + 1)
        if isinstance(node, ast.stmt):
            found.statements += 1
            found.packed += devices_in(node) >= PACKED
    return found


def total(measures: Iterable[Measure]) -> Measure:
    """Several files as one."""
    summed = Measure()
    for part in measures:
        summed.tokens += part.tokens
        summed.code_lines += part.code_lines
        summed.long_lines += part.long_lines
        summed.statements += part.statements
        summed.packed += part.packed
        summed.longest = max(summed.longest, part.longest)
    return summed


def docstring_lines(tree: ast.Module) -> set[int]:
    """The numbers of the lines on which docstrings stand."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            found |= lines_between(docstring.lineno, docstring.end_lineno)
    return found


def lines_between(first: int, last: int) -> set[int]:
    return set(range(first, last + 1))


def devices_in(statement: ast.stmt) -> int:
    """How many expressions of a statement hide an act of their own."""
    return sum(is_device(node) for node in own_nodes(statement))


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below this one, but not those of the statements inside it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
            continue
        yield child
        yield from own_nodes(child)


def is_device(node: ast.AST) -> bool:
    if isinstance(node, ast.Dict):
        return None in node.keys  # {**other}
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.BitOr)  # one | other
    return isinstance(node, DEVICES)
