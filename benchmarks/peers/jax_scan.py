"""The default recipe with one compiled lax.scan per epoch.

About the least overhead a framework can have.

python benchmarks/peers/jax_scan.py DATA_DIR EPOCHS SEED
"""

import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import jax
import jax.numpy as jnp
import optax
from peer import arguments, load, report

data_dir, epochs, seed = arguments()
(x, y), (xe, ye) = [
    (jnp.asarray(a.reshape(-1, 784) / 255.0, jnp.float32), jnp.asarray(b, jnp.int32))
    for a, b in load(data_dir)
]
key = jax.random.PRNGKey(seed)
params = []
for fan_in, fan_out in ((784, 128), (128, 64), (64, 10)):
    key, sub = jax.random.split(key)
    limit = (6 / (fan_in + fan_out)) ** 0.5
    params.append(
        (
            jax.random.uniform(sub, (fan_in, fan_out), minval=-limit, maxval=limit),
            jnp.zeros(fan_out),
        )
    )


def forward(params, x, key=None):
    """Return the logits; with a key, units are dropped."""
    for i, (w, b) in enumerate(params):
        x = x @ w + b
        if i < 2:
            x = jax.nn.relu(x)
            if key is not None:
                key, sub = jax.random.split(key)
                x = jnp.where(jax.random.bernoulli(sub, 0.8, x.shape), x / 0.8, 0)
    return x


adam = optax.adam(1e-3)


def loss(params, x, y, key):
    """Return the mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(forward(params, x, key), y).mean()


@jax.jit
def epoch(params, state, key, x, y):
    """Train on every batch once."""
    key, sub = jax.random.split(key)

    def update(carry, idx):
        params, state, key = carry
        key, sub = jax.random.split(key)
        updates, state = adam.update(jax.grad(loss)(params, x[idx], y[idx], sub), state)
        return (optax.apply_updates(params, updates), state, key), None

    return jax.lax.scan(
        update, (params, state, key), jax.random.permutation(sub, x.shape[0]).reshape(-1, 32)
    )[0]


accuracy = jax.jit(lambda p, x, y: (forward(p, x).argmax(1) == y).mean())
state = adam.init(params)
start = time.perf_counter()
for _ in range(epochs):
    params, state, key = epoch(params, state, key, x[:48_000], y[:48_000])
    val_accuracy = float(accuracy(params, x[48_000:], y[48_000:]))
seconds = time.perf_counter() - start
report(seconds, float(accuracy(params, xe, ye)), val_accuracy=round(val_accuracy, 4))
