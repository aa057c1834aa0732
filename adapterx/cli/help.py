"""Help of the commands: the summary is the command's docstring; here stand commands to copy."""

import inspect
from collections.abc import Callable

KEEP_LINES = "\b\n"  # before a paragraph: do not fill its lines

EXAMPLES_FOLLOW = "[bold]Examples[/bold]"

SUMMARY = "Train, score, use and export bottleneck adapters on frozen Transformers."
PROGRAM = f"{SUMMARY}\n\n{EXAMPLES_FOLLOW}\n\n{KEEP_LINES}" + (
    "  adapterx train --model bert-base-uncased --data train.csv --output runs/sentiment\n"
    "  adapterx evaluate runs/sentiment --data test.csv\n"
    "  adapterx predict runs/sentiment 'A quiet, beautiful film.'\n"
    "  adapterx export runs/sentiment --format onnx"
)  # fmt: skip
EXAMPLES = {
    "train": (
        "# a CSV with the columns text and label; a tenth is held out for evaluation\n"
        "adapterx train --model bert-base-uncased --data train.csv --output runs/sentiment",
        "# few-shot: 16 examples of each class; a narrow adapter after the feed-forward layers only\n"
        "adapterx train --model bert-base-uncased --data train.csv --eval-data dev.csv \\\n"
        "  --examples-per-class 16 --bottleneck-dim 16 --positions feed_forward --output runs/few-shot",
        "# a decoder, whose last token has seen the whole text\n"
        "adapterx train --model gpt2 --pooling last --data train.jsonl --output runs/decoder",
        "# continue after Ctrl-C, a crash or a full disk, with the options of the run\n"
        "adapterx train --resume runs/sentiment",
        "# rare classes weigh more, long texts are read whole, and training ends when it no longer helps\n"
        "adapterx train --model bert-base-uncased --data 'parts/*.jsonl.gz' --class-weights balanced \\\n"
        "  --window-stride 32 --epochs 20 --early-stopping 3 --output runs/reports",
        "# data larger than memory, a checkpoint every 1000 steps, batches of 8 x 16\n"
        "adapterx train --model bert-base-uncased --data large.csv --streaming --save-steps 1000 \\\n"
        "  --gradient-accumulation 8 --max-steps 20000 --output runs/large",
        "# named entities, answers in a chat, summaries: what --task chooses (docs/tasks.md)\n"
        "adapterx train --task token-classification --model distilbert-base-cased --data train.conll \\\n"
        "  --output runs/ner\n"
        "adapterx train --task causal-lm --model HuggingFaceTB/SmolLM2-135M-Instruct --data chats.jsonl \\\n"
        "  --output runs/chat\n"
        "adapterx train --task seq2seq-lm --model google-t5/t5-small --data news.jsonl \\\n"
        "  --source-prefix 'summarize: ' --output runs/summaries",
        "# two devices\n"
        "torchrun --nproc-per-node 2 -m adapterx.cli train --model bert-base-uncased \\\n"
        "  --data train.csv --output runs/two",
    ),
    "evaluate": (
        "adapterx evaluate runs/sentiment --data test.csv\n"
        "adapterx evaluate runs/sentiment --data test.jsonl --json --output runs/sentiment/test.json",
        "# a split of a saved dataset; who is taken for whom\n"
        "adapterx evaluate runs/sentiment --data saved@test --confusion-matrix confusions.csv",
    ),
    "predict": (
        "adapterx predict runs/sentiment 'A quiet, beautiful film.' 'Two hours I will not get back.'\n"
        "adapterx predict runs/sentiment --file new.csv --id-column id --all-probabilities --output labelled.csv\n"
        "cat reviews.txt | adapterx predict runs/sentiment - --format jsonl",
        "# of a language model\n"
        "adapterx predict runs/chat 'What does the cow say?' --max-new-tokens 40 --temperature 0.7 --seed 1",
    ),
    "export": (
        "adapterx export runs/sentiment --format torchscript\n"
        "adapterx export runs/sentiment --format onnx-portable --output deploy/",
    ),
    "convert": (
        "# an adapter of AdapterHub\nadapterx convert downloads/sst-2 adapters/sst-2 --base bert-base-uncased",
        "# back, for the library adapters\nadapterx convert adapters/sst-2 hub/sst-2",
        "# a fusion, its adapters in folders beside it\nadapterx convert hub/fused adapters/fused",
    ),
    "list": ("adapterx list runs adapters",),
    "rename": (
        "adapterx rename adapters/sst-2 sentiment\n"
        "adapterx rename runs/sentiment sentiment --output adapters/sentiment",
    ),
    "average": (
        "# three runs of one task with several seeds\n"
        "adapterx average runs/a runs/b runs/c --output runs/mean\n"
        "adapterx average adapters/a adapters/b --weight 0.7 --weight 0.3 --output adapters/mixed",
    ),
    "push": (
        "adapterx push runs/sentiment owner/sentiment --license apache-2.0 --language en\n"
        "adapterx push adapters/sst-2 owner/sst-2 --base-model bert-base-uncased --private",
    ),
    "pull": (
        "adapterx pull owner/sentiment runs/sentiment\n"
        "adapterx pull owner/several adapters/topic --subfolder topic --revision v1",
    ),
    "info": ("adapterx info\nadapterx info runs/sentiment\nadapterx info bert-base-uncased",),
}


def of(command: Callable[..., None], name: str) -> str:
    """Return the help of a command that is called `name`."""
    summary = " ".join(inspect.getdoc(command).split())
    return "\n\n".join([summary, EXAMPLES_FOLLOW, *(KEEP_LINES + _indented(each) for each in EXAMPLES[name])])


def _indented(example: str) -> str:
    return "".join(f"  {line}" for line in example.splitlines(keepends=True))
