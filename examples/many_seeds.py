"""Serve several requests at a time from one model: threads share it."""

from concurrent.futures import ThreadPoolExecutor

from bksdm import BksdmError, TextToImage

# One thread for each picture; as many pictures at a time as there are cores.
model = TextToImage.load(threads=1)


def serve(seed):
    try:
        result = model("a rocket", num_inference_steps=10, seed=seed)
    except BksdmError as error:  # one line: what was wrong, and what to do
        return f"seed {seed}: {error}"
    name = f"rocket-{seed}.png"
    result.images[0].save(name)
    return f"wrote {name}"


with ThreadPoolExecutor(2) as pool:
    for line in pool.map(serve, range(4)):
        print(line)
