"""The default recipe on Keras, as its notebook writes it. KERAS_BACKEND picks tensorflow or jax.

python benchmarks/peers/keras_recipe.py DATA_DIR EPOCHS SEED
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
from peer import arguments, load, report

data_dir, epochs, seed = arguments()
(x, y), (xe, ye) = load(data_dir)
x, xe = x / 255.0, xe / 255.0
keras.utils.set_random_seed(seed)
model = keras.Sequential(
    [
        keras.layers.Input((28, 28)),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
start = time.perf_counter()
model.fit(
    x,
    keras.utils.to_categorical(y, 10),
    validation_split=0.2,
    epochs=epochs,
    batch_size=32,
    verbose=0,
)
seconds = time.perf_counter() - start
_, accuracy = model.evaluate(xe, keras.utils.to_categorical(ye, 10), verbose=0)
report(seconds, accuracy)
