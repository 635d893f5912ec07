"""Every field of an experiment, with its unit. Experiments change what differs.

All of it is set here or in the experiment's own file: the library has no defaults of its own.
Nothing under `run` changes the trajectory; everything else does.
"""

from ml_collections import ConfigDict

from batchgrow.config import Config


def get_config() -> Config:
    """The fields that all experiments share."""
    config: Config = ConfigDict()
    config.name = ""
    config.variant = ""
    config.seed = 0  # of parameters, stream order and augmentation

    data = config.data = ConfigDict()
    data.name = ""  # "digits", or an image data set of tensorflow_datasets
    data.train_split = "train"
    data.test_split = "test"
    data.num_train_examples = 0  # checked against the data
    data.num_test_examples = 0
    data.image_shape = (0, 0, 0)  # height, width, channels as the model sees them
    # In the step: "none", "flip", "crop_flip"; before it, on JPEGs: "random_resized_crop".
    data.augment = "none"
    data.on_bad_record = "stop"  # of JPEGs: or "replace", by the next record
    data.mean = (0.0,)  # per channel, of pixels 0..255
    data.std = (255.0,)

    model = config.model = ConfigDict()
    model.name = ""  # conv_net, wide_resnet, resnet, inception_resnet_v2
    model.num_classes = 0
    model.dtype = "float32"  # of activations and products; parameters, statistics, loss: float32

    config.ghost_batch_size = 0  # examples that share batch statistics
    config.label_smoothing = 0.0

    optimizer = config.optimizer = ConfigDict()
    optimizer.name = "momentum"  # sgd, momentum, nesterov, adam, rmsprop, adagrad, lars, lamb
    optimizer.weight_decay = 0.0  # coupled L2
    optimizer.decay_on = "all"  # or "kernels": spares batch norm and biases
    optimizer.b2 = 0.999  # of adam, lamb, rmsprop
    optimizer.epsilon = 1e-8  # of adam, lamb, rmsprop, adagrad
    optimizer.trust_coefficient = 0.001  # of lars

    recipe = config.recipe = ConfigDict()  # what the user trusts: the reference
    recipe.num_epochs = 0.0
    recipe.global_batch_size = 0
    recipe.momentum = 0.9  # of optimizers that have one; Adam's b1
    recipe.curve = "step"  # constant, step, exponential, inverse_time, cosine, polynomial
    recipe.learning_rate = 0.0  # initial; 0: what learning_rates has for the optimizer
    recipe.learning_rates = ConfigDict()  # initial, by optimizer
    recipe.boundaries_epochs = (0.0,)  # of "step"
    recipe.factor = 1.0  # of "step", at each boundary
    recipe.decay_rate = 1.0  # per epoch, of "exponential" and "inverse_time"
    recipe.final_learning_rate = 0.0  # of "cosine" and "polynomial"
    recipe.power = 1.0  # of "polynomial"
    recipe.warmup_epochs = 0.0  # linear, from warmup_learning_rate
    recipe.warmup_learning_rate = 0.0

    plan = config.plan = ConfigDict()  # how the recipe's noise scale is paid for
    plan.name = "decay"  # decay, hybrid, grow
    plan.max_batch_size = 0  # 0: a tenth of the training set; -1: none
    plan.initial_multiple = 1.0  # of batch and learning rate, from the start
    plan.momentum = -1.0  # target momentum, the batch following; -1: the recipe's
    plan.exponent = 1.0  # of the coupling lr ~ B^exponent
    plan.ladder = 2.0  # factor of a growth where the curve is smooth
    plan.num_growths = 1  # of "hybrid", before the learning rate takes over
    plan.batch_multiple = 0  # batches are multiples of this; 0: of the ghost batch

    config.log_every_epochs = 1.0  # a row of metrics.jsonl
    config.evaluate_every_epochs = 1.0

    run = config.run = ConfigDict()  # how it runs: nothing here changes the trajectory
    run.data_dir = ""  # of tensorflow_datasets; "": its own default, $TFDS_DATA_DIR
    run.num_devices = 0  # 0: all
    run.resident = True  # the training set lives on the device; otherwise it is streamed
    run.num_workers = 0  # processes that read a streamed data set; 0: a thread
    run.max_per_device_batch_size = "auto"  # of a pass; "auto": what memory holds, 32 on CPU
    run.updates_per_dispatch = 0  # 0: those of 2048 examples, 16 at most; streamed: 1
    run.eval_batch_size = 1000  # global, rounded up to whole devices
    run.compile_ahead = True
    run.compilation_cache_dir = ""  # "": JAX's own setting, else ~/.cache/batchgrow/xla
    run.checkpoint_every_epochs = 5.0  # also at each phase boundary and at the end
    run.keep_checkpoints = 2  # the last ones; the best by test accuracy is kept too
    run.stop_at_phase_end = False  # exit at the next growth, to be started again on more devices
    run.tensorboard = True
    run.progress = True
    return config
