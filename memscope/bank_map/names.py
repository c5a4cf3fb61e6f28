"""Names of clusters on a map: the words or tokens that set them apart. No torch."""

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

_WORDS = 3
"""Number of terms in a name."""


def text_weights(texts: list[str]) -> tuple[sparse.csr_matrix, list[str]]:
    """TF-IDF of words in texts: weights ``[entry, word]`` and the words; texts without words give no column.

    Words are 3 to 24 letters, without English function words; the 50,000 most frequent are kept.
    """
    vectorizer = TfidfVectorizer(
        sublinear_tf=True,
        stop_words="english",
        token_pattern=r"(?u)\b[^\W\d_]{3,24}\b",
        max_features=50_000,
        dtype=np.float32,
    )
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError:  # "empty vocabulary": entries that started random have no sentence
        return sparse.csr_matrix((len(texts), 0), dtype=np.float32), []
    return weights, vectorizer.get_feature_names_out().tolist()


def name_clusters(cluster: np.ndarray, weights: sparse.csr_matrix, terms: list[str]) -> list[str]:
    """Name every cluster by the terms whose mean weight in it lies furthest above the mean of all entries.

    Args:
        cluster: cluster of every entry, ``[N]``.
        weights: weight of every term in every entry, ``[N, term]``.
        terms: their texts.

    Returns:
        A name per cluster: up to three terms, or "cluster 7" where none stands out.
    """
    count = int(cluster.max()) + 1
    sizes = np.maximum(np.bincount(cluster, minlength=count), 1)
    member = sparse.csr_matrix((np.ones(len(cluster), np.float32), (cluster, np.arange(len(cluster)))))
    means = np.asarray((member @ weights).todense()) / sizes[:, None]
    excess = means - np.asarray(weights.mean(0)).reshape(1, -1)
    names = []
    for number, row in enumerate(excess):
        best = [terms[term] for term in np.argsort(-row, kind="stable")[: 4 * _WORDS] if row[term] > 0]
        names.append(", ".join(list(dict.fromkeys(filter(None, best)))[:_WORDS]) or f"cluster {number}")
    return names
