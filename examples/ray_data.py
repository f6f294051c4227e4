"""Draw the rows of a dataset with the workers of a Ray cluster, here one of this machine."""

import json

import ray
import ray.data

from bksdm.batch.drawer import Setup
from bksdm.batch.ray import Draw


def options(row):
    # What decides which picture it is; the row may have more columns.
    return {
        **row,
        "options": json.dumps({"prompt": row["caption"], "seed": 7, "num_inference_steps": 10}),
    }


ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
captions = [{"line": n, "caption": f"a {what}"} for n, what in enumerate(("cat", "dog", "rocket"))]
drawn = (
    ray.data.from_items(captions)
    .map(options)
    .map(
        Draw,
        # Where pictures go, the model, and how it is loaded.
        fn_constructor_args=(Setup.of("pictures", threads=1),),
        compute=ray.data.ActorPoolStrategy(size=1),
    )
)
for row in drawn.iter_rows():
    print(f"wrote pictures/{row['files'][0]}")
ray.shutdown()
