"""The C interface through ctypes, as any other language would call it."""

from __future__ import annotations

import ctypes as c

import numpy as np

RAN, REQUEST, BUNDLE, ENGINE, NON_FINITE, CANCELLED = range(6)
ON_STEP = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_size_t, c.c_size_t)


class Picture(c.Structure):
    _fields_ = (
        ("pixels", c.c_void_p),
        ("width", c.c_size_t),
        ("height", c.c_size_t),
        ("channels", c.c_size_t),
    )

    @classmethod
    def of(cls, array):
        """Describe an array, which has to outlive the picture."""
        channels = array.shape[2] if array.ndim == 3 else 1
        return cls(array.ctypes.data, array.shape[1], array.shape[0], channels)

    def array(self):
        shape = (self.height, self.width, self.channels)
        kind = c.c_uint8 * (shape[0] * shape[1] * shape[2])
        return np.array(kind.from_address(self.pixels)).reshape(shape)


class Request(c.Structure):
    _fields_ = (
        ("struct_size", c.c_size_t),
        ("prompt", c.c_char_p),
        ("negative_prompt", c.c_char_p),
        ("sampler", c.c_char_p),
        ("width", c.c_uint32),
        ("height", c.c_uint32),
        ("steps", c.c_uint32),
        ("images", c.c_uint32),
        ("guidance_scale", c.c_double),
        ("guidance_rescale", c.c_double),
        ("guidance_start", c.c_double),
        ("guidance_end", c.c_double),
        ("seeds", c.POINTER(c.c_uint64)),
        ("seed_count", c.c_size_t),
        ("image", c.POINTER(Picture)),
        ("mask", c.POINTER(Picture)),
        ("strength", c.c_double),
        ("on_step", ON_STEP),
        ("user", c.c_void_p),
        ("cancellation", c.c_void_p),
    )


class Options(c.Structure):
    _fields_ = (
        ("struct_size", c.c_size_t),
        ("engine", c.c_char_p),
        ("folder", c.c_char_p),
        ("device", c.c_char_p),
        ("precision", c.c_char_p),
        ("threads", c.c_int32),
    )


class Failed(Exception):
    """A call returned a code."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Library:
    """The shared library."""

    def __init__(self, path):
        self.calls = c.CDLL(str(path))
        for name in ("bksdm_version", "bksdm_error_message"):
            getattr(self.calls, name).restype = c.c_char_p
        for name in ("bksdm_cancellation_new",):
            getattr(self.calls, name).restype = c.c_void_p
        self.calls.bksdm_result_count.restype = c.c_size_t
        self.calls.bksdm_result_cut_tokens.restype = c.c_size_t
        self.calls.bksdm_result_seconds.restype = c.c_double

    def call(self, name, *arguments):
        error = c.c_void_p()
        code = getattr(self.calls, name)(*arguments, c.byref(error))
        if code != RAN:
            message = self.calls.bksdm_error_message(error).decode()
            assert self.calls.bksdm_error_code(error) == code
            self.calls.bksdm_error_free(error)
            raise Failed(code, message)
        assert error.value is None

    def filled(self, struct, init, **values):
        made = struct()
        getattr(self.calls, init)(c.byref(made), c.c_size_t(c.sizeof(made)))
        assert made.struct_size == c.sizeof(struct)
        for name, value in values.items():
            setattr(made, name, value.encode() if isinstance(value, str) else value)
        return made

    def open(self, bundle, **options):
        given = self.filled(Options, "bksdm_model_options_init", **options)
        model = c.c_void_p()
        self.call("bksdm_model_open", str(bundle).encode(), c.byref(given), c.byref(model))
        return Model(self, model)


class Model:
    """An opened bundle."""

    def __init__(self, library, handle):
        self.library, self.handle = library, handle

    def close(self):
        self.library.calls.bksdm_model_free(self.handle)

    def generate(self, prompt, seeds=(0,), image=None, mask=None, on_step=None, **values):
        """Return pixels [images, height, width, 3], and each picture as a PNG."""
        request = self.library.filled(Request, "bksdm_request_init", prompt=prompt, **values)
        numbers = (c.c_uint64 * len(seeds))(*seeds)
        request.seeds, request.seed_count = numbers, len(seeds)
        pictures = [None if array is None else Picture.of(array) for array in (image, mask)]
        for name, picture in zip(("image", "mask"), pictures, strict=True):
            if picture is not None:
                setattr(request, name, c.pointer(picture))
        if on_step is not None:
            request.on_step = ON_STEP(lambda user, done, total: on_step(done, total))
        result = c.c_void_p()
        self.library.call("bksdm_generate", self.handle, c.byref(request), c.byref(result))
        try:
            return self._pictures(result)
        finally:
            self.library.calls.bksdm_result_free(result)

    def _pictures(self, result):
        pixels, files = [], []
        for index in range(self.library.calls.bksdm_result_count(result)):
            picture, data, size = Picture(), c.c_void_p(), c.c_size_t()
            code = self.library.calls.bksdm_result_picture(
                result, c.c_size_t(index), c.byref(picture)
            )
            assert code == RAN
            pixels.append(picture.array())
            self.library.call(
                "bksdm_result_png", result, c.c_size_t(index), c.byref(data), c.byref(size)
            )
            files.append(c.string_at(data, size.value))
        return np.stack(pixels), files
