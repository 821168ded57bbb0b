"""The errors a caller may want to tell apart; everything else is let through."""


class AirlamError(Exception):
    """Something the user can mend; the message is one line that says what and how (exit status 2)."""


class SpecError(AirlamError, ValueError):
    """A value in a spec is unknown or impossible."""


class DataError(AirlamError, ValueError):
    """A file is not what it should be: truncated, foreign, damaged, or unfit for the model."""
