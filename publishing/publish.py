"""Publish a checkpoint, an adapter or features on the Hugging Face Hub: `radio publish FOLDER ORG/NAME`.

The folder is checked first: it opens in a new process without this repository, its card is complete, it holds no
pickles, no paths of this machine and no code but the installed one. Then all files go up in one commit, with a tag.
"""

import sys
from functools import partial

from modeling_radio.core.command_line import Command
from modeling_radio.core.ids import ModelId
from modeling_radio.core.settings import Settings


class PublishSettings(Settings):
    """Settings of a publication.

    Attributes:
        checkpoint: Folder with a model, an adapter or Parquet files of features, and its card; or the address of
            features, such as s3://bucket/features.
        model_id: ORG/NAME of the repository.
        private: Only its owners see a new repository. An existing one keeps its visibility.
        revision: Tag of this version; by default the first of v1, v2, ... that is free.
        exist_ok: Add a version to a repository that is there already.
        base: ORG/NAME of an adapter's base on the Hub.
        dry_run: Check, and list what would be uploaded, without any request to the Hub.
        trust_remote_code: Allow other code that the folder or an adapter's base names: it is run and published.
    """

    checkpoint: ModelId
    model_id: str
    private: bool = False
    revision: str | None = None
    exist_ok: bool = False
    base: str | None = None
    dry_run: bool = False
    trust_remote_code: bool = False


COMMAND = Command(
    "radio publish",
    __doc__,
    PublishSettings,
    positionals=("checkpoint", "model_id"),
    examples=(
        "radio publish runs/mine/final ORG/NAME --dry-run",
        "radio publish runs/mine/final ORG/NAME --private",
        "radio publish features ORG/FEATURES",
        "radio publish s3://bucket/features ORG/FEATURES",
    ),
)


def _publish(settings: PublishSettings) -> None:
    from huggingface_hub import HfApi  # these take seconds, which `--help` need not wait for

    from modeling_radio.model_cards.build import check_model_id
    from modeling_radio.publishing.checks import check_publication
    from modeling_radio.publishing.publication import publish, read_folder

    check_model_id(settings.model_id)
    check_model_id(settings.base)
    trust = {"trusts_remote_code": settings.trust_remote_code}
    publication = read_folder(settings.checkpoint, settings.model_id, settings.base, **trust)
    check_publication(publication, **trust)
    what = f"{len(publication.files)} files, {publication.num_bytes() / 1e6:.1f} MB ({publication.kind})"
    if settings.dry_run:
        print("\n".join(publication.files))
        print(f"Would upload {what} to {settings.model_id}; nothing was sent.")
        return
    print(f"Uploading {what} to {settings.model_id}.", flush=True)
    options = {"private": settings.private, "revision": settings.revision, "exist_ok": settings.exist_ok}
    print(publish(publication, HfApi(), **options))


main = partial(
    COMMAND.run,
    _publish,
    interrupted="interrupted; uploads are all or nothing: the same command with --exist-ok goes on",
)


if __name__ == "__main__":
    sys.exit(main())
