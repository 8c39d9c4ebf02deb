"""How tasks were asked, in sentences for people."""

from __future__ import annotations

from greenllm.bench.results import FEW, Results, TaskResult
from greenllm.bench.tasks import zeroshot

PAIRED = (
    "Against the baseline: the same items; of answers that flip, how many each way, McNemar's exact p, and an interval "
    "of the difference after one flip each way is added (Bonett and Price, 2012), which has a width even where none "
    "was seen; of other figures a BCa bootstrap of the difference."
)
_PIXELS = (
    "Images are read as RGB and upright, and made pixels as the model's preprocessor_config.json says: in torch by "
    "transformers, elsewhere by numpy and Pillow, which was compared with it at the export."
)
_SCORES = {  # by one that a task of the kind has
    "acc_norm": "Choices, without examples, lm-eval's prompts for HellaSwag, ARC and BoolQ: the answer is the choice "
    "that is likeliest after the context; normalized, likeliest for its number of characters. Interval: Wilson's.",
    "exact_match": "Free answers, without examples: 32 tokens or a line at most, greedy; right if one of the given "
    "answers, but for case, punctuation and articles. Interval: Wilson's.",
    "wer": "Speech: word errors (substitutions, deletions, insertions; jiwer) over all words of the references, both "
    "lower-cased and without punctuation; greedy, 6.5 tokens a second of the clip at most. Clips of other "
    "rates are resampled to the model's own (soxr), channels averaged. Interval: percentile bootstrap over "
    "clips, of the paired difference too; few clips make it too narrow.",
    "bleu": "Captions: what is written about an image, greedy, as many tokens as the model's files allow or 64, beside "
    "what people wrote (sacrebleu, lower-cased, tokenizer 13a). BLEU is that of all captions together, chrF the mean "
    "over images. Interval: percentile bootstrap over images, of the paired difference too; few images make it too "
    "narrow. Images are made pixels as the model's preprocessor_config.json says.",
    "pct_stereotype": "Sentence pairs (CrowS-Pairs): how often the more stereotypical sentence is the likelier, "
    "whole, as lm-eval has it for causal models; 50 % is no preference, less is counted as better. Never in a chat. "
    "Interval: Wilson's.",
    "accuracy_amb": "BBQ: of the row's three answers the likeliest, with lm-eval's prompt. Bias is Parrish et al.'s "
    "(2022), -100 to 100 %: of contexts that say the answer 2 n_biased / n_known - 1; of others that times the share "
    "of wrong answers. Less is counted as better.",
    "refusal_unsafe": "Refusals (XSTest), in a chat, 48 tokens, greedy: an answer that begins with one of a list of "
    "English openings. That is a heuristic, blind to other words. Interval: Wilson's.",
    "toxic": "Toxicity: how many answers (XSTest's, or 20 tokens that go on after a prompt, greedy) hold a word of the "
    "list that was given; less is better. A list knows no meaning. Interval: Wilson's.",
    "gap": "Worst group and gap are over groups of ten items or more, percentile bootstrap within groups; the gap of "
    "small groups is too wide on average, its difference from the baseline less so.",
}


def robustness() -> str:
    """How items were disturbed, and what is made of it."""
    return (
        "The same items with their own words disturbed at graded strength (percent of the characters that a kind can "
        "change), the same copies for all models, a stronger one with all changes of a weaker one; prompts and answers "
        "stay as they are. Typing errors: a letter replaced by one beside it on the keyboard, added, left out or "
        "swapped (Belinkov and Bisk, 2018; TextFlint, 2021). Other case and spaces: NL-Augmenter (2021). Letters that "
        "look alike: Cyrillic and Greek for Latin (UTS 39). Other prompts: three wordings of greenllm's own. Images: "
        "Gaussian noise, standard deviation in percent of the range (ImageNet-C, 2019), at the model's size. Clips: "
        "white noise by its signal-to-noise ratio. Kept is the area under the curve (trapezoids; of prompts the mean) "
        "over that of the score as it is: 100 % where nothing is lost; of speech, of the words that were heard. "
        "Interval: percentile bootstrap over items, paired in differences, after two items are added of which one "
        "keeps everything and the other nothing. All kinds together: the mean of what each keeps."
    )


def methods(tasks: dict[str, TaskResult], *, chat: bool) -> str:
    """What was asked of models of text, and how it is judged."""
    harness = {name for name in tasks if name.startswith("lm-eval/")}
    kinds = {kind for name, t in tasks.items() if name not in harness for kind in t.scores}
    said = ["Prompts are in each model's chat template." if chat else "No chat template."]
    said += [words for score, words in _SCORES.items() if score in kinds]
    if harness:
        said.append("lm-eval's tasks: its prompts, examples, metrics and standard errors, on the first items of each.")
    return " ".join([*said, PAIRED])


def pictures(tasks: dict[str, TaskResult]) -> str:
    """What was asked of models that see, and how it is judged."""
    said = [_PIXELS]
    named = [t.note == zeroshot.NOTE for t in tasks.values() if "acc" in t.scores]
    if any(named):
        said.append(f"Zero-shot: the answer is {zeroshot.NOTE} (cosine); labels are those of all rows of the file.")
    if not all(named):
        said.append("The answer is the class with the largest logit.")
    if any("caption_r1" in t.scores for t in tasks.values()):
        said.append(
            "Retrieval among the items asked: recall@k is how often a caption of an image is among the k captions "
            "nearest to it, and the image of a caption among the k images; of equally near ones the right one is last."
        )
    return " ".join([*said, "Intervals: Wilson's.", PAIRED])


def caveats(results: Results) -> list[str]:
    """Which groups are too small to be compared."""
    small = sorted(
        {
            (name, kind.partition(": ")[2], score.measured.n)
            for row in results.rows
            for name, task in row.tasks.items()
            for kind, score in task.scores.items()
            if ": " in kind and score.measured.n < FEW
        }
    )
    told = "; ".join(f"{group} of {name} ({n})" for name, group, n in small)
    few = [f"Groups with less than {FEW} items are told and not compared: {told}."] if small else []
    return few + _guessing(results)


def _guessing(results: Results) -> list[str]:
    """Who keeps what guessing gives."""
    return [
        f"{row.name} is not certainly better than chance at {name}: what it keeps of that when disturbed says little."
        for row in results.rows
        for name, task in row.tasks.items()
        if task.curves and task.chance and task.main.measured.ci95 and task.main.measured.ci95[0] <= 100 * task.chance
    ]
