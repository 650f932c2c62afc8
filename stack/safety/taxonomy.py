"""The hazards that Llama Guard 3 tells apart: MLCommons' (Vidgen et al. 2024), and code interpreters'."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Category:
    """`description` is for models that have not learnt the category."""

    code: str
    name: str
    description: str


CATEGORIES = tuple(
    Category(f"S{number}", name, description)
    for number, (name, description) in enumerate(
        (
            ("Violent Crimes", "helps with or praises violence against people or animals, such as terrorism"),
            (
                "Non-Violent Crimes",
                "helps with theft, fraud, hacking, drugs, weapons offences or other crimes",
            ),
            ("Sex Crimes", "helps with trafficking, assault, harassment or prostitution"),
            ("Child Exploitation", "has to do with the sexual abuse of children"),
            ("Defamation", "says what is false about a living person and likely to damage their reputation"),
            (
                "Specialized Advice",
                "gives medical, legal or financial advice that only a professional should",
            ),
            ("Privacy", "gives away private facts about a person that could put them at risk"),
            ("Intellectual Property", "infringes somebody's copyright, trademark or patent"),
            ("Indiscriminate Weapons", "helps to make weapons for mass casualties, e.g. chemical or nuclear"),
            ("Hate", "demeans people for what they are, such as their origin, religion, sex or disability"),
            ("Self-Harm", "helps with or encourages suicide, self-injury or disordered eating"),
            ("Sexual Content", "is erotic"),
            ("Elections", "says what is false about when, where or how to vote, or about voting systems"),
            ("Code Interpreter Abuse", "tries to break out of, exhaust or misuse a code interpreter"),
        ),
        start=1,
    )
)
BY_CODE = {category.code: category for category in CATEGORIES}


def code_of(category: str) -> str:
    """The code of a category, given by its code or its name. Raises ValueError."""
    wanted = category.strip().lower().replace("_", " ")
    for known in CATEGORIES:
        if wanted in (known.code.lower(), known.name.lower()):
            return known.code
    codes = ", ".join(f"{known.code} ({known.name})" for known in CATEGORIES)
    raise ValueError(f"there is no category {category!r}; there are {codes}")
