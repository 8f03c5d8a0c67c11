"""Fuzzing of everything that reads bytes from a medium: ``make fuzz``, for ``FUZZ_SECONDS``."""
