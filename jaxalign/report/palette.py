"""The colours of every figure.

The seven hues are those of Okabe and Ito (2008, "Color Universal Design"), which colour-blind
readers can tell apart. Ink, muted ink and lines follow a page from light to dark.
"""

from __future__ import annotations

INK, MUTED, LINE = "#1b1f24", "#5b6470", "#d9dde2"
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"

# As drawn on white paper -> as written into a page, whose style sheet knows light from dark.
THEMED = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)"}

HEAT = "cividis"  # perceptually uniform, made for colour-blind readers (Nuñez et al. 2018)
