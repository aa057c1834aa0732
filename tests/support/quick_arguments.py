"""Arguments of a Hugging Face Trainer that trains for a moment, on the CPU and in silence."""

from transformers import TrainingArguments


def quick_arguments(folder, **settings):
    quiet = {"disable_tqdm": True, "report_to": "none", "use_cpu": True, "dataloader_pin_memory": False}
    return TrainingArguments(output_dir=str(folder), **(quiet | settings))
