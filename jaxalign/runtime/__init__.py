"""Processes, devices and compiled programs; knows neither models nor surveys.

hosts           many processes that run one program
platform        the platform that programs are traced for
sharding        the device mesh, and the table from logical axes to mesh axes
memory          what compiled programs need, what devices have, what this process has taken
mappings        memory mappings, which compiled programs use up
programs        the programs of a run, compiled and checked before anything long starts
hlo             the text of a compiled program as instructions
program_facts   matrix products, exchanges and copies of a compiled program
traffic         bytes that it moves between a chip and its memory
topology        chips that this machine does not have, described to their compilers
"""
