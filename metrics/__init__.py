"""Metrics: pure functions of features, seven of them also as modules of the package `evaluate`.

`evaluate.load("metrics/NAME.py")` opens `accuracy`, `depth_errors`, `effective_rank`,
`feature_cosine`, `image_retrieval`, `knn_accuracy` and `mean_iou`; nothing else imports them. `evaluate` copies such a
file and the neighbor that it imports (`dense`, `knn` or `representation`), so these neighbors import nothing of this
repository when they run.
"""
