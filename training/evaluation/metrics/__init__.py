"""What is measured: pure functions of features, seven of them also as modules of the package `evaluate`.

`evaluate.load("training/evaluation/metrics/NAME.py")` opens `accuracy`, `depth_errors`, `effective_rank`,
`feature_cosine`, `image_retrieval`, `knn_accuracy` and `mean_iou`; nothing else imports them. `evaluate` copies such a
file and the one that it imports from here, which therefore imports nothing of this repository.
"""
