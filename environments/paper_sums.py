"""Writes arithmetic digit by digit, as on paper, for the embedded monologues."""

from __future__ import annotations


def work_out(operation: str, left: int, right: int) -> str:
    """Returns the arithmetic of two numbers as text, by their last digit and the rest, as on paper.

    >>> work_out("+", 47, 38)
    '7+8=15, 4+3=7, 7+1=8.'
    >>> work_out("-", 52, 38)
    '2-8: 12-8=4, 5-3=2, 2-1=1.'
    """
    left_tens, left_ones = divmod(left, 10)
    right_tens, right_ones = divmod(right, 10)
    if operation == "/":
        tens, rest = divmod(left_tens, right)
        carried = 10 * rest + left_ones
        return f"{left_tens}/{right}={tens} rest {rest}, {carried}/{right}={carried // right}."
    if operation == "-":
        borrowed = int(left_ones < right_ones)
        shown = f"{left_ones}-{right_ones}: 1" if borrowed else ""
        ones = f"{shown}{left_ones}-{right_ones}={left_ones + 10 * borrowed - right_ones}"
        tens = left_tens - right_tens
        less = f", {tens}-1={tens - 1}" if borrowed else ""
        return f"{ones}, {left_tens}-{right_tens}={tens}{less}."
    if operation == "+":
        total, tens, shown = left_ones + right_ones, left_tens + right_tens, str(right_tens)
        ones = f"{left_ones}+{right_ones}={total}"
    else:
        total, tens, shown = left_ones * right, left_tens * right, str(right)
        ones = f"{left_ones}*{right}={total}"
    carried = total // 10
    more = f", {tens}+{carried}={tens + carried}" if carried else ""
    return f"{ones}, {left_tens}{operation}{shown}={tens}{more}."
