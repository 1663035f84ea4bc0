"""What the two papers report, beside what this package measures: `jaxalign reproduce`.

command      the command: find or make the runs, replay what is public, write the page
published    `published.json`: every published number, with its source
runs         finished runs
jobs         what runs there are to make, and the commands of those that are missing
soft_prompt  what a run of the first paper measured, by row of the tables
culturespa   what a run of the second paper measured
replay       what is public, computed again
page         the page
"""
