"""Instruction tuning of vision-language models the InstructBLIP way, from raw releases to zero-shot reports."""

__version__ = "0.1.0"
