"""What a key of the settings says about itself."""


def about(
    text: str,
    *,
    unit: str = "",
    minimum: int = 0,
    maximum: int = 0,
    shown: str = "",
    example: str = "",
) -> dict[str, str | int]:
    """
    Say what a key decides, as metadata of its field.

    Args:
        text: The help, in Markdown.
        unit: What a number counts.
        minimum, maximum: The range of a number, both included.
        shown: The default in words, where it depends on the machine.
        example: A mapping as it could be written.
    """
    return {
        "help": text,
        "unit": unit,
        "minimum": minimum,
        "maximum": maximum,
        "shown": shown,
        "example": example,
    }


def seconds(text: str, minimum: int = 1, maximum: int = 3600) -> dict[str, str | int]:
    """Say what a time decides."""
    return about(text, unit="seconds", minimum=minimum, maximum=maximum)
