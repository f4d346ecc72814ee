"""Fine-tuning on labelled images: data sources, augmentation, adapters, tasks and the trainer."""
