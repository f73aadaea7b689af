"""What the outcomes of runs and images mean, and what to do about them, in words for people."""

from __future__ import annotations

OUTCOMES = {
    "done": ("good", "The run ended well.", ""),
    "failed": (
        "bad",
        "The run failed.",
        "Finished work is kept. Read the reason, and run it again.",
    ),
    "too_many_rejects": (
        "warn",
        "The run ended, but too many images could not be captioned.",
        "All captions are kept. Look at the rejects below; output.max_reject_rate is the limit.",
    ),
    "interrupted": (
        "warn",
        "The run was interrupted.",
        "Finished work is kept, and the next run continues.",
    ),
    "store_down": (
        "bad",
        "The store stopped answering.",
        "Finished work is kept. Run it again when the store is back.",
    ),
}
"""Outcome of a run -> its kind, in one sentence, and what to do."""

WITHOUT_FILE = "It goes on, or it was killed. If it was killed, run it again: finished work is kept."
"""About a run that has rows in the tables, but no run file."""

REJECTS = {
    "missing": "Nothing, if they were deleted: `nightcap prune` marks such rows. Otherwise correct the manifest.",
    "forbidden": "Give the job's account the right to read them. Every run tries them again.",
    "unavailable": "Nothing: every run tries them again. If there are many, look at the store and the network.",
    "empty": "Upload them again: the files have zero bytes.",
    "too_large": "Raise input.max_bytes if they are images.",
    "too_many_pixels": "Raise input.max_pixels if they are meant to be so large, and there is memory for it.",
    "unsupported": "Convert them to JPEG or PNG, or leave them out of the source. The detail says what they are.",
    "truncated": "Upload them again: the files end early.",
    "corrupt": "Upload them again, or save them anew: the content is damaged.",
    "out_of_memory": "Nothing: every run tries them again. If there are many, give decode workers more memory.",
    "poison": "Look at them with care: they crash or block the decoder. After an upgrade, `--retry poison`.",
}
"""Error class of a rejected image -> what to do."""

REASON_WORDS = {
    "changed": "the image has changed",
    "other model": "another model or other settings made it",
    "asked": "it was captioned again on request",
    "restored": "the image was gone and is back",
}
"""Reason of a replaced caption -> in words."""
