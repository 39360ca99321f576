"""What the user can put right."""

__all__ = ["UserError"]


class UserError(Exception):
    """A user's mistake, in one sentence: what was wrong, where, and what to do. The CLI prints it and exits with 2."""
