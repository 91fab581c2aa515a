"""Typeset the equations of docstrings, which are plain text there: ``y[o, g] = Σ_h w[o,h]`` becomes TeX."""

from __future__ import annotations

import re

_MATHEMATICS = re.compile("[Σ⋆√⁻‖ᵀ·⟨⟩⌊²³≈λρ]")
_PROGRAM = re.compile(r"==|%|@|\*\*|\.\w+\(|>>>")  # literals that Python could run
_SYMBOLS = {
    "Σ": r"\sum ", "⋆": r"\star ", "·": r"\cdot ", "≈": r"\approx ", "‖": r"\Vert ", "|": r"\vert ", "⟨": r"\langle ",
    "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "λ": r"\lambda ", "ρ": r"\rho ", "−": "-", "ᵀ": r"^{\top}",
    "⁻¹": "^{-1}", "²": "^{2}", "³": "^{3}", "₀": "_{0}", "₁": "_{1}", "₂": "_{2}", "'": "^{\\prime}", "%": r"\%",
}  # fmt: skip
_NAMED = ("max", "min")
_TOKEN = re.compile(r"[A-Za-z](?:̃)?[A-Za-z]*(?:_[A-Za-z]+)*|√\w[₀₁]?|√(?=\()|⁻¹|.", re.DOTALL)


def tex(text: str) -> str | None:
    r"""Return an equation as TeX, or None if the text is code.

    Brackets after a name are its indices; names of several letters are upright.

    >>> tex("y[o, g] = Σ_h (g·w[o])[h] ⋆ x[h]")
    'y_{o, g} = \\sum _h (g\\cdot w_{o})_{h} \\star  x_{h}'
    >>> tex("bound = 1/√(I·K)")
    '\\mathrm{bound} = 1/\\sqrt{I\\cdot K}'
    >>> tex("(n + 2·padding) % stride == 0")
    """
    if not _MATHEMATICS.search(text) or _PROGRAM.search(text):
        return None
    return _close_roots("".join(_symbol(token) for token in _TOKEN.findall(text))).strip()


def typeset(docstring: str) -> str:
    """Return a docstring with its equations marked for Sphinx; one that ends a paragraph gets a line of its own.

    >>> typeset("Add: ``y[g] = Σ_h x[h]``.")
    'Add:\\n\\n.. math:: y_{g} = \\\\sum _h x_{h}\\n'
    """
    displayed = re.sub(r":\s``([^`]+ = [^`]+)``\.(?=\n\s*\n|\n*$)", _display, docstring)
    return re.sub(r"``([^`]+)``", lambda found: f":math:`{t}`" if (t := tex(found[1])) else found[0], displayed)


def _display(found: re.Match[str]) -> str:
    equation = tex(" ".join(found[1].split()))
    return found[0] if equation is None else f":\n\n.. math:: {equation}\n"


def _symbol(token: str) -> str:
    if token == "[":
        return "_{"
    if token == "]":
        return "}"
    if token.startswith("√"):
        return r"\sqrt" + (f"{{{token[1]}{_SYMBOLS.get(token[2:], '')}}}" if token[1:] else "")
    name, _, index = token.partition("_")
    if index and (len(name) == 1 or name in _NAMED):
        return f"{{{_symbol(name)}_{{{index}}}}}"
    if token[:1].isalpha() and token[0].isascii():
        if len(token) == 1 or token in _NAMED:
            return token if len(token) == 1 else rf"\{token} "
        if token[1:] == "̃":
            return rf"\tilde{{{token[0]}}}"
        return rf"\mathrm{{{token}}}".replace("_", r"\_")
    return _SYMBOLS.get(token, token)


def _close_roots(equation: str) -> str:
    r"""Replace the parentheses after \sqrt by braces."""
    while (start := equation.find(r"\sqrt(")) >= 0:
        opening, depth = start + len(r"\sqrt"), 0
        for end in range(opening, len(equation)):
            depth += {"(": 1, ")": -1}.get(equation[end], 0)
            if depth == 0:
                break
        equation = equation[:opening] + "{" + equation[opening + 1 : end] + "}" + equation[end + 1 :]
    return equation
