"""The stages a backup passes, each with its two directions in one file.

None knows another: each is handed the next writer (`core/stream.py`), and a verb strings them
together.
"""
