"""Reports and figures; knows neither models nor surveys.

document   what a report is made of: sections of texts, tables and figures
common     parts that every report has
words      numbers and findings in words
palette    the colours of every figure
figures    what is drawn: estimates, radars, heat maps, curves, maps
drawing    figures as PNG and SVG files, and as SVG inside a page
tables     tables as CSV and LaTeX files
render     a report as Markdown and as one self-contained HTML page
"""
