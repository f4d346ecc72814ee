"""Fine-tuning on labeled images: data sources, augmentation, adapters, tasks and the trainer."""
