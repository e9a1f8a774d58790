"""The convolutional network in Keras.

With its own layers for augmentation. KERAS_BACKEND picks tensorflow or jax.

python benchmarks/peers/cnn_keras.py DATA_DIR EPOCHS IMAGES none|keras float32|bfloat16

The augmentation works on batches in tf.data: that is two to three times as fast as image by image.
"""

import json
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from peer import load


def network() -> keras.Model:
    """Return the network of ``mnist_lightning.networks``."""
    net: list[keras.layers.Layer] = [layers.Input((28, 28, 1))]
    for number, channels in enumerate((32, 32, 64, 64, 128, 128)):
        net += [layers.Conv2D(channels, 3, padding="same", use_bias=False)]
        net += [layers.BatchNormalization(momentum=0.9, epsilon=1e-5), layers.ReLU()]
        net += [layers.MaxPooling2D(2)] if number in (1, 3) else []
    net += [layers.GlobalAveragePooling2D(), layers.Dropout(0.3), layers.Dense(10, dtype="float32")]
    return keras.Sequential(net)


def augmentation() -> keras.layers.Pipeline:
    """Return Keras's nearest to this package's deformations.

    Five layers that each resample the image.
    """
    black = {"fill_mode": "constant", "fill_value": 0.0, "dtype": "float32"}
    steps = [
        layers.RandomRotation(15 / 360, **black),
        layers.RandomZoom((-0.1, 0.1), (-0.1, 0.1), **black),
        layers.RandomShear(0.176, **black),
        layers.RandomTranslation(2 / 28, 2 / 28, **black),
        # A displacement of 0.7 pixels too, but with a sigma of 1.3 pixels: one number sets both.
        layers.RandomElasticTransform((1.0, 1.0), (0.9, 0.9), value_range=(0, 1), **black),
    ]
    return layers.Pipeline(steps)


data_dir, epochs, images, augmented, precision = sys.argv[1:]
number = int(images)
keras.mixed_precision.set_global_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
x, labels = load(data_dir)[0]
x, y = x[..., None].astype(np.float32) / 255, keras.utils.to_categorical(labels, 10)
val = slice(48_000, 48_000 + number // 4)
model = network()
third = int(epochs) * -(-number // 128) // 3  # of the updates
schedule = keras.optimizers.schedules.CosineDecay(
    1.6e-4, 2 * third, warmup_target=4e-3, warmup_steps=third
)
model.compile(
    keras.optimizers.AdamW(schedule, weight_decay=0.02),
    keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.05),
    metrics=["accuracy"],
)
train = {"x": x[:number], "y": y[:number], "batch_size": 128}
if augmented == "keras":
    change = augmentation()
    batches = tf.data.Dataset.from_tensor_slices((train["x"], train["y"])).shuffle(number)
    batches = batches.batch(
        128, drop_remainder=True
    )  # the elastic layer wants to know the size of a batch
    batches = batches.map(lambda a, b: (change(a), b), num_parallel_calls=tf.data.AUTOTUNE)
    # One iterator for all epochs: TensorFlow takes seconds to begin with such a graph.
    train = {"x": batches.repeat().prefetch(tf.data.AUTOTUNE), "steps_per_epoch": number // 128}
times = [time.perf_counter()]
clock = keras.callbacks.LambdaCallback(
    on_epoch_end=lambda *_: times.append(time.perf_counter())
)  # after validation
given = {
    "validation_data": (x[val], y[val]),
    "validation_batch_size": 1000,
    "verbose": 0,
    "callbacks": [clock],
}
done = model.fit(**train, epochs=int(epochs), **given)
seconds = np.diff(times).round(3)
print(
    json.dumps(
        {"seconds": seconds.tolist(), "val_accuracy": round(done.history["val_accuracy"][-1], 4)}
    )
)
