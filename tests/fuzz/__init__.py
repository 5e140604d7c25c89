"""Damaged and hostile files, seeded: python -m tests.fuzz [--cases 2000] [--seed 0] [--only WORD] [--case N].

Each case takes good files (made once, by the real flux-shapes), damages one of them as a seeded draw says,
and runs a command on them in a forked process. Then must hold:

    the command ends by itself, within a time and within memory
    it succeeds, or says in two clean lines what is wrong and what to do: no traceback, no control character
    nothing outside the folder was written, renamed or removed, and no code from a file ran
    where the step that makes a damaged file succeeds, the file has its good bytes again
"""
