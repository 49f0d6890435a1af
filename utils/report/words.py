"""Numbers as the texts of a report say them."""
from collections.abc import Sequence


def number(value: float) -> str:
    """Three digits or, above 100, those before the point; with a minus sign."""
    text = f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'
    return text.replace('-', '−')


def span(values: Sequence[float]) -> str:
    """'0.12 to 0.34'"""
    low, high = number(min(values)), number(max(values))
    return low if low == high else f'{low} to {high}'


def extremes(numbers: Sequence[int], values: Sequence[float]) -> str:
    """'0.12 (convolution 3) to 0.34 (convolution 7)': values of the convolutions `numbers`."""
    ends = [f'{number(end)} (convolution {numbers[list(values).index(end)]})'
            for end in (min(values), max(values))]
    return ends[0] if min(values) == max(values) else ' to '.join(ends)


def trend(epochs: Sequence[int], values: Sequence[float]) -> str:
    """'from 12 in epoch 1 to 34 in epoch 9'"""
    first, last = (f'{number(values[place])} in epoch {epochs[place]}' for place in (0, -1))
    return f'from {first} to {last}' if len(epochs) > 1 else first


def capitalized(text: str) -> str:
    return text[:1].upper() + text[1:] if text[:1].isascii() else text
