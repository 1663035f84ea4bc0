"""Bad inputs, kept as a table of builders: what is broken, and which reader is given it.

damage.py     what can be wrong with any file of text or of JSON, and those that do it
readers.py    every reader of a file from elsewhere, with the smallest file that it takes
special.py    what is wrong in the words of one format
"""
