"""Ratings of films in MovieLens, as histories with the film that was liked next."""

import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from kd.skills.readers.choices import listed
from kd.skills.readers.json_values import Row, members

FOLDER = "recbole/dataset_example/ml-100k/ml-100k"
LIKED = 4.0  # of five stars
HISTORY = 5
CANDIDATES = 10


def next_film(path: Path) -> Iterator[Row]:
    """For each user the last film that was liked, among nine that the user did not rate (leave one out).

    `path` is the wheel of recbole. Rows have `history` (the five films liked before), `choices` (ten titles in an order
    that does not depend on the answer), `options` (the same as lettered lines), `answer_index`, `answer` and `user`.
    Users who liked fewer than six films are left out.
    """
    inter, item = (_table(text) for text in members(path, f"{FOLDER}.inter", f"{FOLDER}.item"))
    titles = {film: f"{title} ({year})" for film, title, year, _ in item}
    ratings: defaultdict[str, list[tuple[float, str, float]]] = defaultdict(list)
    for user, film, stars, seconds in inter:
        ratings[user].append((float(seconds), film, float(stars)))
    films = sorted(titles, key=int)
    for user in sorted(ratings, key=int):
        rated = sorted(ratings[user])
        liked = [film for _, film, stars in rated if stars >= LIKED]
        if len(liked) > HISTORY:
            seen = {film for _, film, _ in rated}
            yield _row(user, liked, [film for film in films if film not in seen], titles)


def _table(text: str) -> list[list[str]]:
    """The rows after the header, four cells each."""
    return [line.split("\t") for line in text.splitlines()[1:]]


def _row(user: str, liked: list[str], unseen: list[str], titles: dict[str, str]) -> Row:
    rng = random.Random(f"ml-100k {user}")
    films = [*rng.sample(unseen, CANDIDATES - 1), liked[-1]]
    rng.shuffle(films)
    choices, index = [titles[film] for film in films], films.index(liked[-1])
    return {
        "user": user,
        "history": "; ".join(titles[film] for film in liked[-HISTORY - 1 : -1]),
        "choices": choices,
        "options": listed(choices),
        "answer_index": index,
        "answer": titles[liked[-1]],
    }
