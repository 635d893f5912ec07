"""The config that all experiments start from.

`python -m experiments.fields --config=configs/base.py` prints every field with its meaning. The
fields are declared, with their defaults and bounds, in batchgrow/config/fields.py.
"""

from batchgrow.config.fields import base_config as get_config

__all__ = ["get_config"]
