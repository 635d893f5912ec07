"""Every field of an experiment, with its unit. Experiments change what differs.

All of it is set here or in the experiment's own file: the library has no defaults of its own.
Nothing under `run` changes the trajectory; everything else does.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from batchgrow import config as library


def get_config() -> library.ConfigDict:
    """The fields that all experiments share."""
    config: library.ConfigDict = ConfigDict()
    config.name = ""  # shown in messages and in the report
    config.variant = ""  # likewise
    config.seed = 0  # of parameters, stream order, augmentation and dropout

    task = config.task = ConfigDict()  # other tasks have other fields: see batchgrow/tasks
    task.name = "classification"  # classification, language, regression, or module:Class
    task.augment = "none"  # of training images: none, flip, crop_flip
    task.mean = placeholder(tuple)  # of each channel or of all; None: 0..255 becomes 0..1
    task.std = placeholder(tuple)  # likewise
    task.label_smoothing = 0.0  # probability that training spreads evenly over all classes

    data = config.data = ConfigDict()
    data.name = ""  # npz:, images:, text: or csv:PATH; hf: or tfds:NAME; module:function; or digits
    data.train_split = "train"  # replaces {split} in a path
    data.test_split = "test"  # likewise
    data.test_share = placeholder(float)  # of a source with one split, at random (a text: its end)
    data.columns = placeholder(str)  # names of its arrays, such as "img,label"; None: the task's
    data.target = placeholder(str)  # of csv: the columns to predict, such as "price,area"
    data.image_size = placeholder(int)  # side in pixels of decoded images; None: all have one size
    data.tokens = "characters"  # of text: and hf: characters, bytes
    data.context = placeholder(int)  # of texts: the tokens that a model sees
    data.on_bad_record = "stop"  # of input "workers": stop, or replace (by the next record)
    data.num_train_examples = placeholder(int)  # a number is checked; None: any number
    data.num_test_examples = placeholder(int)  # likewise

    model = config.model = ConfigDict()  # and the model's own fields; sizes may come from the data
    model.name = ""  # see batchgrow/models; or module:Class of Flax Linen or NNX

    config.ghost_batch_size = placeholder(int)  # examples that share batch statistics; None: none

    optimizer = config.optimizer = ConfigDict()
    optimizer.name = "momentum"  # see OPTIMIZERS in batchgrow/optimizer.py, or module:function
    optimizer.weight_decay = 0.0  # coupled L2; decoupled for adamw and lamb
    optimizer.decay_on = "all"  # all, kernels (no norms, biases, embeddings), matrices
    optimizer.b2 = 0.999  # of adam, adamw, lamb
    optimizer.epsilon = 1e-8  # of adam, adamw, lamb, rmsprop, adagrad
    optimizer.betas_follow_batch = False  # b1, b2 keep their half-life in examples as it grows
    optimizer.b1_floor = 0.5  # with betas_follow_batch
    optimizer.b2_floor = 0.9  # with betas_follow_batch
    optimizer.decay_follows_batch = True  # adamw's decay keeps its time constant in examples
    optimizer.rmsprop_decay = 0.9  # of rmsprop
    optimizer.rmsprop_bias_correction = False  # of rmsprop; as published
    optimizer.adagrad_initial = 0.0  # of adagrad: the sum of squares at the start
    optimizer.trust_coefficient = 0.001  # of lars
    optimizer.debias_momentum = False  # of momentum and nesterov: full rate from the first update
    optimizer.clip_norm = placeholder(float)  # most global norm of the gradient; None: no clipping
    optimizer.average_epochs = placeholder(float)  # evaluate an average of the weights over these

    recipe = config.recipe = ConfigDict()  # what the user trusts: the reference
    recipe.num_epochs = placeholder(float)  # must be set
    recipe.batch_size = placeholder(int)  # examples of an update on all devices; must be set
    recipe.momentum = 0.9  # of optimizers that have one; b1 of adam, adamw and lamb
    # step, constant, exponential, inverse_time, cosine, polynomial, wsd, or module:function
    recipe.curve = "step"
    recipe.learning_rate = placeholder(float)  # initial; None: that of learning_rates
    recipe.learning_rates = ConfigDict()  # initial, by optimizer
    recipe.boundaries_epochs = ()  # of "step"
    recipe.factor = 1.0  # of "step", at each boundary
    recipe.decay_rate = 1.0  # per epoch, of "exponential" and "inverse_time"
    recipe.final_learning_rate = 0.0  # of "cosine", "polynomial", "wsd"
    recipe.decay_start_epochs = 0.0  # of "cosine"
    recipe.power = 1.0  # of "polynomial" and "wsd"
    recipe.decay_epochs = 0.0  # of "wsd": the last ones, in which the learning rate decays
    recipe.warmup_epochs = 0.0  # linear, from warmup_learning_rate
    recipe.warmup_learning_rate = 0.0  # at epoch 0

    plan = config.plan = ConfigDict()  # how the recipe's noise scale is kept
    plan.name = "decay"  # decay, hybrid, grow, ramp, follow
    plan.max_batch_size = placeholder(float)  # None: by N/10 and the curve; inf: no limit
    plan.initial_multiple = 1.0  # of batch and learning rate, from the start
    plan.momentum = placeholder(float)  # the batch follows it for SGD; None: the recipe's
    plan.exponent = placeholder(float)  # of lr ~ B^exponent; None: the optimizer's own
    # Of "ramp": "EXAMPLE:BATCH EXAMPLE:BATCH ...", or "START INCREMENT EXAMPLES" up to
    # recipe.batch_size, as Megatron-LM's --rampup-batch-size. With plan.exponent = 0 the learning
    # rate does not follow.
    plan.batches = ""
    plan.ladder = 2.0  # factor of a growth where the curve is smooth
    plan.num_growths = 1  # of "hybrid", before the learning rate takes over
    plan.factor = 1.0  # of "follow": the batch may be so many times the gradient noise scale
    plan.decide_every_epochs = 0.1  # of "follow"
    plan.batch_multiple = placeholder(int)  # batches are multiples of this; None: the ghost batch

    noise = config.noise = ConfigDict()  # measuring the gradient noise scale
    noise.share = placeholder(float)  # of the training examples that are also measured; None: off
    noise.piece_size = placeholder(int)  # examples of a piece; None: the ghost batch
    noise.num_pieces = 8  # of one measurement
    noise.horizon_epochs = 1.0  # time constant of the averages

    config.log_every_epochs = 1.0  # a row of metrics.jsonl
    config.evaluate_every_epochs = 1.0  # of the whole test set

    run = config.run = ConfigDict()  # how it runs: nothing here changes the trajectory
    run.data_dir = ""  # of tensorflow_datasets; "": its own default, $TFDS_DATA_DIR
    run.num_devices = placeholder(int)  # None: all
    run.input = "resident"  # the devices hold the training set; or streamed, or workers (JPEGs)
    run.num_workers = 0  # processes that decode; 0: a thread
    run.max_microbatch_size = placeholder(int)  # of a pass on a device; None: by memory, 32 on CPU
    run.updates_per_dispatch = placeholder(int)  # None: those of 2048 examples, at most 16
    run.eval_batch_size = 1000  # on all devices, rounded up to whole devices
    run.compile_ahead = True  # the next batch size, while the current one trains
    run.compilation_cache_dir = ""  # "": JAX's own setting, else ~/.cache/batchgrow/xla
    run.checkpoint_every_epochs = 5.0  # also when the run stops
    run.keep_checkpoints = 2  # the last ones; the best by the task's first metric is kept too
    run.stop_at_growth = False  # exit before the next growth, to be started again on more devices
    run.tensorboard = True  # write an event file
    run.progress = True  # show a bar
    return config
