"""Runs that are killed, damaged, starved of disk and put in odd places: does anything get lost?

    python -m tests.chaos --trials 40              # one table on the screen; every fault in turn
    python -m tests.chaos --minutes 15 --report    # longer, and docs/reliability.md is written
    python -m tests.chaos --repeat "flipped bit" ask 1234567

A trial takes a command with small settings and the pocket model, does one thing to it, resumes it
as a user would, and compares what it leaves, byte by byte, with a run that was never touched. It
ends in one of three ways: the bytes are the same ("survived"), a message names what is damaged
("named"), or anything else ("lost"): other numbers without a word, a traceback, a run that cannot
be resumed.

Kills are real: each is a process of its own, ended by a signal. What happens to files needs no
kill; those trials start from the state in which a process left its directory at some moment, and
resume in this process.
"""
