"""Stored records of a data set, and what is done about bad ones."""

ON_BAD_RECORD = ("stop", "replace")


class BadRecordError(RuntimeError):
    """A record that cannot be read or decoded, or whose label is not a class."""

    def __init__(self, index: int, file_name: str, reason: str):
        super().__init__(index, file_name, reason)  # the arguments, so that it pickles
        self.index = index
        self.reason = reason
        self.file_name = file_name

    def __str__(self) -> str:
        return f"bad record {self.index} ({self.file_name}): {self.reason}"
