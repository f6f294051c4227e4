"""The errors a user can cause; a message is one line: what was wrong and what to do."""


class BksdmError(Exception):
    """Base of all documented errors of this project."""


class EngineError(BksdmError):
    """A network cannot be loaded or run by the backend that was asked for."""


class BundleError(BksdmError):
    """A bundle on disk is missing, damaged or of the wrong kind; names the file and the field."""


class RequestError(BksdmError, ValueError):
    """A generation request is invalid; names the argument."""


class SamplerError(BksdmError, ValueError):
    """A scheduler configuration or step count is not implemented; names the field."""


class NonFiniteError(BksdmError):
    """A network produced NaN or infinity; names the stage and the step."""


class ExportError(BksdmError):
    """A checkpoint cannot be exported; says what was found and what is supported."""


class LoraError(BksdmError):
    """A LoRA cannot be read, or is for another architecture; names the file and the layer."""
