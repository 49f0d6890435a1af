"""From the results of finished cells to rows and paired tests.

A result is a dict: 'ranks' (of the true class of each validation image, see true_class_ranks),
'curve' (validation top-1 per epoch, in percent), 'epoch', 'seconds' of training, 'bits_per_weight'
and 'bytes' of the network. Results come as {(method, inputs): {seed: result}}.
"""
import math
import statistics
from typing import NamedTuple

import numpy as np

Kind = tuple[str, str]      # method, inputs
POWER, LEVEL = 0.8, 0.05    # the chance to see a difference, in a two-sided test at this level
NORMAL = statistics.NormalDist()
WIDTH = NORMAL.inv_cdf(1 - LEVEL / 2)       # 1.96 standard errors, half of an interval
STANDARD_ERRORS = WIDTH + NORMAL.inv_cdf(POWER)     # 2.80, of what is seen


def deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def standard_error(values: list[float]) -> float:
    return deviation(values) / math.sqrt(len(values))


def hits(result: dict, top: int = 1) -> list[bool]:
    """For each image, whether its class is among the `top` likeliest."""
    return [rank < top for rank in result['ranks']]


def accuracy(hits: list[bool]) -> float:
    """In percent, of which images are right."""
    return 100 * statistics.mean(hits)


def summarize(method: str, inputs: str, results: dict[int, dict]) -> dict:
    """The row of a method: mean and deviation over seeds, standard error over images, in percent.

    An image counts with its share of right answers over the seeds, so seeds do not multiply images.
    """
    runs = list(results.values())
    row = {'weights': method, 'inputs': inputs, 'seeds': len(runs)}
    for top in (1, 5):
        of_runs = [hits(run, top) for run in runs]
        accuracies = list(map(accuracy, of_runs))
        per_image = [statistics.mean(image) for image in zip(*of_runs, strict=True)]
        row |= {f'top{top}': statistics.mean(accuracies), f'top{top}_sd': deviation(accuracies),
                f'top{top}_se': 100 * standard_error(per_image)}
    return row | {'images': len(runs[0]['ranks']), 'epochs': max(run['epoch'] for run in runs),
                  'hours': statistics.mean(run['seconds'] for run in runs) / 3600,
                  'bits_per_weight': runs[0]['bits_per_weight'],
                  'megabytes': runs[0]['bytes'] / 1e6}


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p of McNemar's test (Psychometrika 1947).

    Of the images that one of two methods alone got right, each is as likely one's as the other's.
    """
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2 ** n)


class Spread(NamedTuple):
    """Variances of a paired difference, in points², by what differs; and how much was measured.

    d = mean + seed + image + rest, by the method of moments for two random effects without
    repetition (Searle, Casella, McCulloch, "Variance Components", 1992).
    """

    seed: float
    image: float
    rest: float
    seeds: int
    images: int

    def standard_error(self) -> float:
        """Standard error of the mean difference, in points, over seeds and images."""
        return math.sqrt(self.seed / self.seeds + self.image / self.images
                         + self.rest / self.seeds / self.images)

    def smallest_seen(self) -> float:
        """The smallest true difference, in points, seen with POWER; too small with few seeds."""
        return STANDARD_ERRORS * self.standard_error()

    def seeds_for(self, points: float) -> int | None:
        """The seeds that see a difference of so many points on as many images; None: no number."""
        left = (points / STANDARD_ERRORS) ** 2 - self.image / self.images
        return math.ceil((self.seed + self.rest / self.images) / left) if left > 0 else None

    def images_for(self, points: float) -> int | None:
        """The images that see it with as many seeds; None: no number."""
        left = (points / STANDARD_ERRORS) ** 2 - self.seed / self.seeds
        return math.ceil((self.image + self.rest / self.seeds) / left) if left > 0 else None


def spread(differences: np.ndarray) -> Spread | None:
    """The Spread of differences (seeds, images) in points, None of a single seed or image."""
    seeds, images = differences.shape
    if min(seeds, images) < 2:
        return None
    mean = differences.mean()
    by_seed, by_image = (differences.mean(axis, keepdims=True) - mean for axis in (1, 0))
    rest = np.square(differences - mean - by_seed - by_image).sum() / (seeds - 1) / (images - 1)
    of_seed = np.square(by_seed).sum() / (seeds - 1) - rest / images
    of_image = np.square(by_image).sum() / (images - 1) - rest / seeds
    return Spread(max(0.0, float(of_seed)), max(0.0, float(of_image)), float(rest), seeds, images)


def paired(a: Kind, b: Kind, results: dict[Kind, dict[int, dict]]) -> dict | None:
    """The paired comparison of two kinds on the images of the seeds that both have, or None."""
    seeds = sorted(results[a].keys() & results[b].keys())
    if not seeds:
        return None
    right_a, right_b = (np.array([hits(results[kind][seed]) for seed in seeds], dtype=float)
                        for kind in (a, b))
    differences = right_a - right_b     # (seeds, images): 1 where a alone is right, -1 where b is
    alone = [(int((run > 0).sum()), int((run < 0).sum())) for run in differences]
    points = [100 * (only_a - only_b) / differences.shape[1] for only_a, only_b in alone]
    return {'inputs': a[1], 'a': a[0], 'b': b[0], 'seeds': len(seeds),
            'difference': statistics.mean(points), 'sd': deviation(points), 'alone': alone,
            'se': 100 * standard_error(differences.mean(0).tolist()),
            'spread': spread(100 * differences), 'p': [mcnemar(*numbers) for numbers in alone]}
