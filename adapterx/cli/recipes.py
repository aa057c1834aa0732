"""What a run uses where the command line gives nothing and the method, the model or this machine decides."""

METHODS = ("adapters", "head", "full")  # what is trained

# Chosen on the development split of MR, means of three seeds: these values with the head at 5e-3 0.764, at 1e-3 0.760,
# width 32 and "houlsby" 0.755; full fine-tuning 0.749.
CLASSIFICATION = {
    "adapters": {"epochs": 6, "learning_rate": 1e-3, "head_learning_rate": 5e-3},
    "head": {"epochs": 10, "learning_rate": 1e-2},
    "full": {"epochs": 4, "learning_rate": 1e-4},
}
BOTTLENECK_DIM = 64
INIT = "he"
MAX_LENGTH = 128
EVAL_FRACTION = 0.1
# The learning curve is drawn from at most this many held-out examples after every epoch; the scores at the end use all.
CURVE_EXAMPLES = 256
EVAL_BATCH_SIZE = 64
