"""A reward by import path, for the tests of callable rewards."""


def longest_word(prompts, responses):
    """Length of the longest word of the response, less one for each word of the prompt."""
    return [
        max((len(w) for w in r.split()), default=0) - len(p.split())
        for p, r in zip(prompts, responses, strict=True)
    ]


def length_class(prompts, responses):
    """0 of a short response, 1 of a long one."""
    return [int(len(r) > 6) for r in responses]


def questions(split, n, seed):
    """Items of one type: which of two words is said."""
    from rlhf_jax.evals.prompting import Item

    words = ("king", "river", "house", "love")
    first = 0 if split == "train" else 2
    return [
        Item("say", "one", f"Say {words[(first + i) % 4]} {i}.", words[(first + i) % 4], ("sad",))
        for i in range(n)
    ]


def texts(split, n, seed):
    """Short prompts, which repeat."""
    return [f"Story {(i + seed) % 7}" for i in range(n)]
