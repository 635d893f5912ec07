"""nanoGPT's small character-level run on the works of Shakespeare, and plans that grow its batch.

    python -m experiments.shakespeare

The recipe is that of nanoGPT's README ("I only have a macbook"): 4 layers, 4 heads, 128 channels,
context 64, no dropout; 2,000 updates of 12 examples with AdamW, the learning rate rising to 1e-3 in
100 updates and falling to 1e-4 by half a cosine. The README quotes a validation loss of 1.88.

nanoGPT validates on the last 10 % of the text, which are the validation and test splits of
tensorflow_datasets together. It estimates the loss from random windows and also draws training
windows at random; here each token is predicted once in an evaluation and once in an epoch.

    decaying_lr        the recipe as it is                                           2,000 updates
    increasing_batch   the batch doubles where the learning rate has halved, and     1,406
                       the rate returns to its peak: the noise scale of SGD
    square_root        the same batches, but the rate is multiplied by sqrt(2),      1,406
                       not 2: Seesaw's rule for Adam (arXiv 2510.14717)

The recipe's rate falls by 10 in all, so the batch grows 12 -> 24 -> 48 -> 96. The default limit of
20 / (1 - momentum) updates in each rung would allow no growth in a run as short as this.

`VARIANT,python_topics` trains on the help texts that ship with Python, for as many updates.
"""

from ml_collections import ConfigDict

from batchgrow import config as library
from batchgrow.data.text import ASCII, TextDataset, load_text
from configs import base

VARIANTS = ("decaying_lr", "increasing_batch", "square_root")
BATCH_SIZE = 12
NUM_UPDATES = 2000
WARMUP_UPDATES = 100
CONTEXT = 64
SHAKESPEARE_EXAMPLES = 15_685  # windows of 64 + 1 in 1,003,854 characters


def get_config(variant: str = "decaying_lr") -> library.ConfigDict:
    """The recipe with the plan of one of `VARIANTS`."""
    name, _, text = variant.partition(",")
    if text not in ("", "python_topics"):
        raise ValueError(f"variant {variant!r}: write 'python_topics' or nothing after the comma")
    config: library.ConfigDict = base.get_config()
    config.name = "shakespeare"
    config.variant = variant
    config.task = ConfigDict({"name": "language"})

    config.model.name = "transformer"
    config.model.layers = 4
    config.model.heads = 4
    config.model.channels = 128
    config.model.context = CONTEXT
    config.model.dropout = 0.0
    config.model.bias = False
    config.model.dtype = "float32"

    config.optimizer.name = "adamw"
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.1
    config.optimizer.decay_on = "matrices"
    config.optimizer.clip_norm = 1.0

    config.recipe.batch_size = BATCH_SIZE
    config.recipe.momentum = 0.9
    config.recipe.curve = "cosine"
    config.recipe.learning_rate = 1e-3
    config.recipe.final_learning_rate = 1e-4
    config.recipe.warmup_learning_rate = 1e-3 / (WARMUP_UPDATES + 1)

    config.data.context = CONTEXT
    if text == "python_topics":
        config.data.name = "python_topics"
        config.data.test_split = "test"
        config.model.vocab_size = len(ASCII)
        tokens = load_text("python_topics", "train").tokens
        num_examples = TextDataset(tokens, CONTEXT).num_examples
    else:
        config.data.name = "tiny_shakespeare"
        config.data.test_split = "validation+test"
        config.model.vocab_size = 65
        num_examples = SHAKESPEARE_EXAMPLES
    config.data.num_train_examples = num_examples
    set_length(config, num_examples)

    match name:
        case "decaying_lr":
            config.plan.name = "decay"
        case "increasing_batch":
            config.plan.name = "grow"
            config.plan.max_batch_size = 96.0
            config.plan.exponent = 1.0
        case "square_root":
            config.plan.name = "grow"
            config.plan.max_batch_size = 96.0
            config.plan.exponent = 0.5
        case _:
            raise ValueError(f"unknown variant {name!r}; choose {', '.join(VARIANTS)}")
    return config


def set_length(config: library.ConfigDict, num_examples: int) -> None:
    """Turns updates of the recipe into epochs of `num_examples`."""
    epochs_per_update = BATCH_SIZE / num_examples
    config.recipe.num_epochs = NUM_UPDATES * epochs_per_update
    config.recipe.warmup_epochs = WARMUP_UPDATES * epochs_per_update
    config.recipe.decay_start_epochs = WARMUP_UPDATES * epochs_per_update
    config.log_every_epochs = 50 * epochs_per_update
    config.evaluate_every_epochs = 200 * epochs_per_update
    config.run.checkpoint_every_epochs = 500 * epochs_per_update
    config.run.plan_warnings = False  # short segments are meant; experiments.plan warns
