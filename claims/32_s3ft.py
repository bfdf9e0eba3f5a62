"""S3FT against plain fine-tuning: what is learnt, and what is lost of what the model could do before.

The spec's honest check: sums of two numbers of two digits; the reference is in a long format that is not the model's
(columns with carries), the judge is the last number of an answer. SmolLM2-135M-Instruct, 256 training sums, last 4
blocks, 3 epochs; greedy answers of at most 64 tokens. Measured on 100 new sums; preservation as the polarity of 100
words of VADER's lexicon (the likelier of two answers; choice), and as the loss of the untuned model's own answers to 50
general questions. A seed draws other sums and words. Recorded besides: shares of the origins, tokens in each arm,
likelihood under the untuned model, paraphrases that copy.

The pass rule as pairs: accuracy on new sums at least that of plain fine-tuning minus 2 points; polarity above; loss
below.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ontarget.values import Array, Context

NUMBER = 32
NAME = "s3ft"
TITLE = "S3FT forgets less"
KIND = "direction"
STATEMENT = (
    "Fine-tuned on its own right answers a language model solves new sums as often as after plain fine-tuning (to 2 "
    "points), and keeps more of what it could do before: polarity of words, and its own answers to other questions."
)
DATA = "Sums of two-digit numbers: 256 to train on, 100 new ones; 100 words of VADER; 50 general questions"
BUDGET = "the same prompts in the same order, 3 epochs of the last 4 blocks"
ARMS = ("s3ft sums, + 2 points", "sft sums", "s3ft polarity", "sft polarity", "s3ft - loss", "sft - loss",
        "untuned sums", "untuned polarity", "untuned - loss")  # fmt: skip
PAIRS = (("s3ft sums, + 2 points", "sft sums"), ("s3ft polarity", "sft polarity"), ("s3ft - loss", "sft - loss"))
SEEDS = 3
MEASURE = "score"

TRAIN, TEST, WORDS, TOKENS, EPOCHS, BLOCKS = 256, 100, 100, 64, 3, 4
QUESTIONS = (
    "What is the capital of France?", "Why is the sky blue?", "Who wrote Hamlet?", "How do plants make their food?",
    "What does a carpenter do?", "Name three fruits.", "What is the largest ocean?", "Why do we sleep?",
    "What is a novel?", "How does a bicycle stay upright?", "What is the boiling point of water?",
    "Describe a cat in one sentence.", "What are the primary colours?", "How do I make a cup of tea?",
    "What is the opposite of cold?", "Who was Albert Einstein?", "What is gravity?", "Name a river in Africa.",
    "What is bread made of?", "Why do leaves fall in autumn?", "What is a computer?", "How far away is the moon?",
    "Give me a tip for saving money.", "What language is spoken in Brazil?", "What is photosynthesis?",
    "Tell me a short joke.", "What do bees make?", "How can I learn to swim?", "What is democracy?",
    "What causes rain?", "Name two planets.", "What is the meaning of honesty?", "How do birds fly?",
    "What is the currency of Japan?", "Why is exercise good for you?", "What is a poem?", "Who painted the Mona Lisa?",
    "What is salt used for?", "How do I write a letter?", "What is an island?", "What do doctors do?",
    "Why do people travel?", "What is electricity?", "Name a musical instrument.", "What is a dictionary for?",
    "How do fish breathe?", "What is snow?", "Give a synonym for happy.", "What is the sun?",
    "What makes a good friend?",
)  # fmt: skip


def sums(seed: int) -> tuple[list[str], list[str]]:
    """Prompts and references of TRAIN and then TEST sums, no two alike."""
    generator = np.random.default_rng(seed)
    pairs = [(int(at) // 90 + 10, int(at) % 90 + 10) for at in generator.choice(8100, TRAIN + TEST, replace=False)]
    return [f"What is {a} + {b}?" for a, b in pairs], [columns(a, b) for a, b in pairs]


def columns(a: int, b: int) -> str:
    """The sum in the foreign format."""
    ones, carry = (a % 10 + b % 10), (a % 10 + b % 10) // 10
    tens = a // 10 + b // 10 + carry
    return (
        f"[ones] {a % 10} & {b % 10} -> {ones}, put {ones % 10}, keep {carry}; "
        f"[tens] {a // 10} & {b // 10} & {carry} -> {tens}, put {tens}; [end] {a + b}"
    )


def words(seed: int) -> tuple[list[str], Array]:
    """Words and whether each is positive, as many of both."""
    from ontarget.data.samples import vader_words

    table = vader_words()
    table = table[table["sentiment"].abs() >= 1.5]
    generator = np.random.default_rng([seed, 1])
    parts = [table[sign * table["sentiment"] > 0]["word"].to_numpy() for sign in (1, -1)]
    drawn = [generator.choice(part, WORDS // 2, replace=False) for part in parts]
    return [str(word) for word in np.concatenate(drawn)], np.repeat([True, False], WORDS // 2)


def polarity(source: Any, seed: int) -> float:
    from ontarget.adapt.answers import answer_losses

    drawn, positive = words(seed)
    prompts = [f'Is the word "{word}" positive or negative? Answer with one word.' for word in drawn]
    likes = [-answer_losses(source, prompts, [said] * len(prompts))[0] for said in ("Positive", "Negative")]
    # The two words differ in how likely they are for any prompt: that is taken out.
    margin = likes[0] - likes[1]
    return float(np.mean((margin > np.median(margin)) == positive))


def run(seed: int, context: Context) -> dict[str, dict[str, Any]]:
    """Scores of the untuned model and of both arms."""
    from ontarget.adapt.align.s3ft import s3ft
    from ontarget.adapt.align.supervised_fine_tuning import supervised_fine_tuning
    from ontarget.adapt.answer_metric import answer_scores
    from ontarget.adapt.answers import answer_losses, generate_answers
    from ontarget.pool.language_models import DEFAULT, load_language_model

    prompts, references = sums(seed)
    train, test = prompts[:TRAIN], prompts[TRAIN:]
    untuned = load_language_model(DEFAULT)
    said = generate_answers(untuned, list(QUESTIONS), max_new_tokens=48)

    def judge(rows: Any, answers: Any) -> Array:
        return answer_scores("last_number", answers, [[references[row]] for row in rows])

    def answer(asked: Any) -> list[str]:
        return generate_answers(untuned, asked, max_new_tokens=TOKENS)

    def scores(source: Any, name: str, **more: Any) -> dict[str, dict[str, Any]]:
        answers = generate_answers(source, test, max_new_tokens=TOKENS)
        right = float(answer_scores("last_number", answers, [[one] for one in references[TRAIN:]]).mean())
        losses, counts = answer_losses(source, list(QUESTIONS), said)
        loss = float(losses.sum() / counts.sum())
        return {
            f"{name} sums": {"score": right, **more}, f"{name} polarity": {"score": polarity(source, seed)},
            f"{name} - loss": {"score": -loss, "perplexity": float(np.exp(loss))},
        }  # fmt: skip

    results = scores(untuned, "untuned")
    made = {variant: s3ft(train, [[one] for one in references[:TRAIN]], answer, judge, variant=variant)  # type: ignore[arg-type]
            for variant in ("sft", "s3ft")}  # fmt: skip
    for variant, rewritten in made.items():
        losses, counts = answer_losses(untuned, train, rewritten.answers)
        source = load_language_model(DEFAULT)
        tuned = supervised_fine_tuning(
            source, train, rewritten.answers, mode="last", last_blocks=BLOCKS, epochs=EPOCHS,
            context=Context(seed=seed, progress=context.progress),
        )  # fmt: skip
        found = scores(
            source, variant, shares=rewritten.shares(), copied=rewritten.copied, training_tokens=tuned.tokens,
            loss_before=float(losses.sum() / counts.sum()), training_loss=tuned.curve,
        )  # fmt: skip
        results.update(found)
    ours = results.pop("s3ft sums")
    return {**results, "s3ft sums, + 2 points": {**ours, "score": ours["score"] + 0.02}}
