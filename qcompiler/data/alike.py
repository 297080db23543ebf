"""Whether two sets of data were prepared alike, in words: the scale and the place of what each input gets.

    scale   standard deviations that differ by more than 4 times
    place   means more than two standard deviations apart, or values below zero that the other set never has

Calibration sets ranges, and data of another preparation then fills a hundredth of them or is clipped: both look like a
bad quantizer. Of integers only those of 8 bits are compared, which are pictures; others are ids, lengths and masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qcompiler.data.spread import Spread

SCALE = 4.0  # between standard deviations
PLACE = 2.0  # standard deviations between means
SOME = 32  # elements from which the absence of negative values says something
SURE = 8.0  # elements over kurtosis from which a standard deviation does; 24 of a normal distribution
NEGATIVE = 0.1  # of the largest magnitude: below zero by more than rounding or interpolation


def differences(first: Mapping[str, Spread], second: Mapping[str, Spread], called: str, other: str) -> Iterator[str]:
    """A sentence for each input that differs.

    Args:
        first: values of the inputs in one set of data.
        second: the same of another; inputs that one of them lacks are not compared.
        called: what people call the first set, such as `calibration data`.
        other: what they call the second one.
    """
    for name, one in first.items():
        two = second.get(name)
        if two is None or not (_measured(one) and _measured(two)):
            continue
        why = _why(one, two, called, other)
        if why is None:
            continue
        guess = _guess(one, two)
        looks = f"; it looks like {guess}" if guess else ""
        yield (
            f"input '{name}' has other values in the {other} than in the {called}: {_words(two)}, against "
            f"{_words(one)}: {why}{looks}. Prepare both as the deployed model will be fed; ranges and figures mean "
            "little before"
        )


def _measured(one: Spread) -> bool:
    return one.kind == "f" or one.bits == 8


def _why(one: Spread, two: Spread, called: str, other: str) -> str | None:
    """What differs, as a clause; None where nothing does."""
    if one.std == 0.0:
        return None if one.minimum == two.minimum == two.maximum else f"the {called} has never seen another value"
    if two.std == 0.0:  # a single value is as good as any that the first set has, too
        return None if one.minimum <= two.minimum <= one.maximum else "a value out of their range"
    if min(one.count, two.count) < SOME:
        return None
    sure = min(one.count / one.kurtosis, two.count / two.kurtosis) >= SURE
    ratio = two.std / one.std
    if sure and (ratio > SCALE or ratio < 1 / SCALE):
        return f"{max(ratio, 1 / ratio):.3g} times {'larger' if ratio > 1 else 'smaller'}"
    if sure and abs(one.mean - two.mean) > PLACE * max(one.std, two.std):
        return f"shifted by {two.mean - one.mean:+.4g}"
    if _below_zero(one) != _below_zero(two) and min(one.minimum, two.minimum) < 0 <= max(one.minimum, two.minimum):
        return f"only the {called if _below_zero(one) else other} has values below zero"
    return None


def _below_zero(one: Spread) -> bool:
    return one.minimum < -NEGATIVE * max(one.maximum, -one.minimum)


def _guess(one: Spread, two: Spread) -> str | None:
    """What the two look like, where both look like something and not the same."""
    first, second = _looks(one), _looks(two)
    if first is None or second is None or first == second:
        return None
    return f"{second} against {first}"


def _looks(one: Spread) -> str | None:
    """The usual preparations of pictures by their values; None where it could be anything."""
    low, high = one.minimum, one.maximum
    if low >= 0 and 2 < high <= 255 and one.std > 2:
        return "0..255"
    if low >= 0 and 0.2 < high <= 1:
        return "0..1"
    if -1 <= low < -0.2 and high <= 1:
        return "-1..1"
    if -20 < low < 0 < high < 20 and 0.3 < one.std < 3 and abs(one.mean) < 2 * one.std:
        return "values normalised by mean and standard deviation"
    if low < -20 and low > -160 and high <= 255 and one.std > 2:
        return "0..255 with the mean taken out"
    return None


def _words(one: Spread) -> str:
    if one.std == 0.0:
        return f"always {_figure(one.minimum)}"
    limits = f"{_figure(one.minimum)} to {_figure(one.maximum)}"
    return f"{limits} (mean {_figure(one.mean)}, standard deviation {_figure(one.std)})"


def _figure(value: float) -> str:
    """With four digits, and all of them in front of the point."""
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e8 else f"{value:.4g}"
