"""Files in CulturalBench's layout, written by ourselves: eight plain facts on twelve countries.

Easy has 96 questions with four options; Hard asks the same ones as four proposed answers each. The
columns, the letters and the capitals of TRUE and FALSE are those of the published files; no text is
from them.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

QUESTIONS = {
    "capital": "Which city is the capital of {}?",
    "currency": "What is the money of {} called?",
    "language": "Which of these languages do many people in {} speak at home?",
    "dish": "Which dish is typical of {}?",
    "neighbour": "Which of these countries is nearest to {}?",
    "greeting": "How do people in {} say hello?",
    "river": "Which river flows through {}?",
    "festival": "Which festival do people in {} celebrate?",
}
FACTS = {
    "United States": "Washington|dollar|English|hamburger|Canada|Hello|Mississippi|Thanksgiving",
    "China": "Beijing|yuan|Mandarin|Peking duck|Mongolia|Ni hao|Yangtze|Lunar New Year",
    "India": "New Delhi|rupee|Hindi|biryani|Nepal|Namaste|Ganges|Diwali",
    "Brazil": "Brasilia|real|Portuguese|feijoada|Argentina|Bom dia|Amazon|Carnival",
    "Japan": "Tokyo|yen|Japanese|sushi|South Korea|Konnichiwa|Shinano|Obon",
    "Nigeria": "Abuja|naira|Hausa|jollof rice|Cameroon|Sannu|Niger|Durbar",
    "Peru": "Lima|sol|Quechua|ceviche|Ecuador|Buenos dias|Ucayali|Inti Raymi",
    "Germany": "Berlin|euro|German|sauerkraut|Poland|Guten Tag|Rhine|Oktoberfest",
    "Mexico": "Mexico City|peso|Nahuatl|tacos|Guatemala|Hola|Rio Grande|Day of the Dead",
    "Egypt": "Cairo|pound|Arabic|koshari|Sudan|Ahlan|Nile|Sham el-Nessim",
    "Russia": "Moscow|rouble|Russian|pelmeni|Kazakhstan|Zdravstvuyte|Volga|Maslenitsa",
    "Thailand": "Bangkok|baht|Thai|pad thai|Laos|Sawasdee|Chao Phraya|Songkran",
}

Rows = list[dict[str, Any]]


def sets(countries: Sequence[str] = tuple(FACTS), topics: int = 8) -> tuple[Rows, Rows]:
    """Return the rows of Easy and of Hard about some of the countries, on the first topics."""
    random = np.random.default_rng(0)
    easy, hard = [], []
    facts = {country: text.split("|") for country, text in FACTS.items()}
    for country, topic in ((c, t) for c in countries for t in range(topics)):
        label = 100 + len(easy)
        place = "the United States" if country == "United States" else country
        question = list(QUESTIONS.values())[topic].format(place)
        others = [c for c in FACTS if c != country]
        wrong = [facts[others[i]][topic] for i in random.permutation(len(others))[:3]]
        right = int(random.integers(4))
        options = [*wrong[:right], facts[country][topic], *wrong[right:]]
        row = {"question_idx": label, "prompt_question": question}
        easy.append(
            {
                "data_idx": len(easy),
                **row,
                **{f"prompt_option_{k}": o for k, o in zip("abcd", options, strict=True)},
                "answer": "ABCD"[right],
                "country": country,
            }
        )
        hard += [
            {
                "data_idx": len(hard) + n,
                **row,
                "prompt_option": option,
                "answer": str(n == right).upper(),
                "country": country,
            }
            for n, option in enumerate(options)
        ]
    return easy, hard


def write_csv(path: Path, rows: Rows) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def write_sets(folder: Path, **chosen: Any) -> tuple[Path, Path]:
    """Write both files, named as the published ones; return their paths."""
    easy, hard = sets(**chosen)
    return (
        write_csv(folder / "CulturalBench-Easy.csv", easy),
        write_csv(folder / "CulturalBench-Hard.csv", hard),
    )


if __name__ == "__main__":
    print(*write_sets(Path(sys.argv[1])))
