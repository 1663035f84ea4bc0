"""Our models in other people's evaluation tools: lm-evaluation-harness and Inspect.

Both tools run tasks of their own on a model of ours, with or without a low-rank adapter, and with
or without a soft prompt. Their task data are the user's.
"""
