"""Everything that knows TensorFlow and is shared: scanning, loading, data for fitting, proving.

The variables must be set before TensorFlow is imported for the first time: TFMOT works with tf_keras only, and `keras`
(Keras 3, beside it in the same process) must run on TensorFlow.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
