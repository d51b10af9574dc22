"""The language in which is said which models may run together.

::

    or   := and ('|' and)*
    and  := atom ('&' atom)*
    atom := identifier | '+' set-name | '(' or ')'

``&`` is together, ``|`` is one of them, and ``&`` binds tighter. An identifier is a model or a short name for one,
``+name`` stands for what another set says, with nothing between the sign and the name. Identifiers consist of letters,
digits, ``_``, ``-`` and ``.``; space between them is of no account.

Here text becomes a flat list of nodes, by loops and not by recursion: a text may be nested as deep as it likes.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

TokenKind: TypeAlias = Literal["identifier", "reference", "and", "or", "open", "close", "end"]
NodeKind: TypeAlias = Literal["model", "reference", "all", "any"]

_SIGNS: Final[Mapping[str, TokenKind]] = MappingProxyType({"&": "and", "|": "or", "(": "open", ")": "close"})
_SHOWN: Final = 24
"""How many characters before a fault its message shows."""


class SetExpressionError(ValueError):
    """A set says nothing that can be understood, or that can be worked with."""

    set_name: str
    """The set at fault; "" where an expression was read that has no name."""

    position: int | None
    """How many characters of the text stand before the fault; None where it has no single place."""

    reason: str
    """What is wrong, and what to do about it."""

    def __init__(self, reason: str, *, position: int | None = None, text: str = "", set_name: str = "") -> None:
        self.reason = reason
        self.position = position
        self.text = text
        self.set_name = set_name
        super().__init__(self._message())

    def of_set(self, name: str) -> SetExpressionError:
        """The same, said of the set of this name."""
        return SetExpressionError(self.reason, position=self.position, text=self.text, set_name=name)

    def _message(self) -> str:
        where = f"set {self.set_name!r}: " if self.set_name else ""
        if self.position is None:
            return f"{where}{self.reason}"
        before = " ".join(self.text[max(0, self.position - _SHOWN) : self.position].split())
        after = f", after {before!r}" if before else ""
        return f"{where}position {self.position}{after}: {self.reason}"


@attrs.frozen
class Token:
    """A word or a sign of an expression."""

    kind: TokenKind
    text: str
    """The word itself, without the ``+`` of a reference; "" at the end."""
    position: int
    """How many characters stand before it."""


@attrs.frozen
class Node:
    """A part of an expression: a model, another set, or children that are wanted together, or one of them."""

    kind: NodeKind
    text: str
    """The identifier as it is written, or the name of the other set; "" for the rest."""
    position: int
    """How many characters stand before it."""
    children: tuple[int, ...] = ()
    """Where its children stand in :attr:`Expression.nodes`."""


@attrs.frozen
class Expression:
    """An expression that was read."""

    text: str
    """As it is written."""
    nodes: tuple[Node, ...]
    """All its parts, children before their parents: the whole is the last one."""


def is_identifier(text: str) -> bool:
    """Whether a text can stand in an expression as the name of something."""
    return bool(text) and all(map(_in_identifier, text))


def tokenize(text: str) -> list[Token]:
    """The words and signs of an expression; the last one is its end.

    Raises:
      SetExpressionError: a character has no meaning, or a ``+`` has no name after it.
    """
    tokens: list[Token] = []
    place, length = 0, len(text)
    while place < length:
        character = text[place]
        if character.isspace():
            place += 1
        elif sign := _SIGNS.get(character):
            tokens.append(Token(sign, character, place))
            place += 1
        elif character == "+" or _in_identifier(character):
            begin = start = place
            if character == "+":
                start = place = place + 1
            while place < length and _in_identifier(text[place]):
                place += 1
            if place == start:
                raise SetExpressionError("expected the name of a set right after '+'", position=start, text=text)
            tokens.append(Token("reference" if start > begin else "identifier", text[start:place], begin))
        else:
            raise SetExpressionError(
                f"{character!r} has no meaning here: names consist of letters, digits, '_', '-' and '.'; "
                f"give a model whose name has others a short one in vars",
                position=place,
                text=text,
            )
    return [*tokens, Token("end", "", length)]


def _in_identifier(character: str) -> bool:
    return character.isalpha() or character.isdecimal() or character in "_-."


@attrs.define
class _Level:
    """What has been read since a parenthesis was opened."""

    position: int
    """Where it was opened; of the whole expression 0."""
    alternatives: list[int] = attrs.field(factory=list)
    """What stood between the ``|`` so far."""
    together: list[int] = attrs.field(factory=list)
    """What stood between the ``&`` since the last ``|``."""


@attrs.define
class _Reader:
    text: str
    nodes: list[Node] = attrs.field(factory=list)

    def error(self, reason: str, position: int) -> SetExpressionError:
        return SetExpressionError(reason, position=position, text=self.text)

    def add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def join(self, kind: NodeKind, children: list[int]) -> int:
        """One node for all of them; a single one needs none."""
        if len(children) == 1:
            return children[0]
        return self.add(Node(kind, "", self.nodes[children[0]].position, tuple(children)))

    def end_alternative(self, level: _Level) -> None:
        level.alternatives.append(self.join("all", level.together))
        level.together = []

    def end_level(self, level: _Level) -> int:
        self.end_alternative(level)
        return self.join("any", level.alternatives)


def parse(text: str) -> Expression:
    """Read an expression.

    Raises:
      TypeError: ``text`` is no string.
      SetExpressionError: it is empty, or not as the language has it; the message says where.
    """
    if not isinstance(text, str):
        raise TypeError(f"a set is said by a text, as 'a & (b | c)', not by {text!r}")
    reader = _Reader(text)
    levels = [_Level(0)]
    wanted = True  # whether a model, a set or a parenthesis must come next
    tokens = tokenize(text)
    if len(tokens) == 1:
        raise reader.error("the expression is empty: name at least one model", 0)
    for token in tokens:
        level = levels[-1]
        match token.kind:
            case "identifier" | "reference" | "open" if not wanted:
                raise reader.error(f"expected '&' or '|' before {_shown(token)}", token.position)
            case "identifier":
                level.together.append(reader.add(Node("model", token.text, token.position)))
                wanted = False
            case "reference":
                level.together.append(reader.add(Node("reference", token.text, token.position)))
                wanted = False
            case "open":
                levels.append(_Level(token.position))
            case _ if wanted:
                raise reader.error(
                    f"expected a model, '+' and a set, or '(', but here {_shown(token, 'is ')}", token.position
                )
            case "and":
                wanted = True
            case "or":
                reader.end_alternative(level)
                wanted = True
            case "close":
                if len(levels) == 1:
                    raise reader.error("this ')' closes nothing: leave it out, or add the '(' before", token.position)
                levels.pop()
                levels[-1].together.append(reader.end_level(level))
            case _:
                if len(levels) > 1:
                    raise reader.error("this '(' is never closed: add a ')'", level.position)
                reader.end_level(level)
    return Expression(text, tuple(reader.nodes))


def _shown(token: Token, link: str = "") -> str:
    if token.kind == "end":
        return f"{link}the end"
    return f"{link}{'+' if token.kind == 'reference' else ''}{token.text}" if link else repr(token.text)
