"""Start from a picture, and write how the new one looks after every fifth step."""

from PIL import Image

from bksdm import TextToImage

model = TextToImage.load()
apple = model("a red apple", num_inference_steps=25, seed=7).images[0]


def save(step):
    if step.index % 5 == 4:
        # One pixel for each 8 x 8 of the picture; model.decode is exact, and slow.
        preview = Image.fromarray(model.preview(step.denoised)[0])
        name = f"step-{step.index + 1:02}.png"
        preview.resize(apple.size).save(name)
        print("wrote", name)


result = model(
    "a red apple on a pink background",
    image=apple,
    strength=0.6,
    num_inference_steps=25,
    seed=7,
    on_step=save,
)
result.images[0].save("pink.png")
print("wrote pink.png")
