"""Draw a picture with the built-in model; a bundle's folder in `load` takes another."""

from bksdm import TextToImage

model = TextToImage.load()
result = model("a red apple", num_inference_steps=25, seed=7)
result.images[0].save("apple.png")
print("wrote apple.png")
for stage, seconds in result.seconds.items():
    print(f"{stage}: {seconds:.2f} s")
