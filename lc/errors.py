"""The one exception that means "your input, not our bug": the CLI prints it as one line and exits with 2."""


class InputError(ValueError):
    """A value the user gave cannot be used. The text gives the value, the rule and the next step."""


def check_rho(rho: float) -> float:
    """Return rho as a float in [0, 1], the threshold of Sec. 3.1; anything else raises InputError."""
    try:
        value = float(rho)
    except (TypeError, ValueError):
        raise InputError(f"rho must be a number in [0, 1], got {rho!r}") from None
    if not 0.0 <= value <= 1.0:
        raise InputError(f"rho must be in [0, 1], got {rho}: 0 lets stage 1 decide every pixel, 1 lets nobody exit")
    return value
