# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "pillow>=10.4",
#     "safetensors>=0.5,<1",
#     "torch>=2.6,<3",
#     "torchvision>=0.21,<1",
#     "transformers>=5.17,<6",
# ]
# ///
"""Say which words describe an image best: zero-shot classification, for a folder with a text tower."""

import argparse
from pathlib import Path

from transformers import pipeline


def main() -> None:
    """Read the arguments and print a table for each image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a RADIO model with texts, or its name on the Hub")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--words", nargs="+", required=True, help='classes, such as --words otter "city street"')
    parser.add_argument("--template", default="a photo of a {}.", help="sentence around each word")
    given = parser.parse_args()

    classify = pipeline("zero-shot-image-classification", model=given.model, trust_remote_code=True)
    for path in given.images:
        print(path.name)
        answers = classify(str(path), candidate_labels=given.words, hypothesis_template=given.template)
        for answer in answers:
            print(f"  {answer['score']:.3f}  {answer['label']}")


if __name__ == "__main__":
    main()
