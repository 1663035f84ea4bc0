"""Colours of the report: Okabe and Ito's (2008, "Color Universal Design"), told apart by
colour-blind readers; and the three that follow the page from light to dark."""

from __future__ import annotations

INK, MUTED, LINE = "#1b1f24", "#5b6470", "#d9dde2"
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"

# as drawn on white paper -> as written into a page, whose style sheet knows light from dark
THEMED = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)"}

HEAT = "cividis"  # perceptually uniform, and made for colour-blind readers (Nuñez et al. 2018)
