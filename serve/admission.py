"""From what a client asks for to a request in a scheduler."""

from __future__ import annotations

from bksdm.engines.errors import BundleError, RequestError, SamplerError
from bksdm.runtime.request import Request
from bksdm.serve.errors import FieldError
from bksdm.serve.order import Order, check_size, field_error
from bksdm.serve.scheduler import Scheduler
from bksdm.serve.settings import Limits
from bksdm.serve.ticket import Ticket


def ticket_of(scheduler: Scheduler, order: Order, limits: Limits, priority: int = 0) -> Ticket:
    """Return the ticket of an order, which is not submitted yet.

    Parameters
    ----------
    scheduler : Scheduler
        That will draw it.
    order : Order
        What is asked for.
    limits : Limits
        The most that may be asked for.
    priority : int
        A higher one goes first.

    Raises
    ------
    FieldError
        It cannot be drawn; names the field.
    """
    first = next((each for each in (order.image, *order.control_images) if each), None)
    if first is not None:
        config, (width, height) = order.config, first.size
        check_size(config.width or width, config.height or height, limits)
    request = _resolved(scheduler, order)
    check_size(request.config.width, request.config.height, limits)
    shown = _shown_after(scheduler, len(request.table), order.previews)
    return Ticket(request, priority, order.timeout, shown)


def _resolved(scheduler: Scheduler, order: Order) -> Request:
    try:
        return scheduler.model.request(
            order.config,
            image=order.image,
            mask=order.mask,
            control_image=order.control_images or None,
        )
    except (RequestError, SamplerError) as error:
        raise field_error(error) from error


def _shown_after(scheduler: Scheduler, evaluations: int, previews: int) -> frozenset[int]:
    """Return after which evaluations it is shown how the pictures look: evenly, before the end."""
    if not previews:
        return frozenset()
    try:
        _ = scheduler.model.preview
    except BundleError as error:
        raise FieldError("previews", "previews: this model has none; see preview.json") from error
    spaced = (evaluations * (k + 1) // (previews + 1) for k in range(previews))
    return frozenset(step for step in spaced if 0 < step < evaluations)
