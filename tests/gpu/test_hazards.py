"""What no driver of host memory can show: how a real one fails, allocates and launches."""

from __future__ import annotations

import statistics
import threading
import time

import numpy as np
import pytest

from bksdm.engines.errors import EngineError
from bksdm.runtime.cuda.slot import CONTROL

from ..cuda.simulated import machine_code

pytestmark = pytest.mark.gpu
LAUNCHES = 500


@pytest.fixture
def check(gpu):
    """A kernel that looks at two bytes of its own."""
    kernel = gpu.load(machine_code(gpu.target), "check_embeddings")
    control, halves = gpu.allocate(CONTROL.itemsize), gpu.allocate(2)
    return lambda: kernel(1, control.address, halves.address, 1)


def free_memory():
    from cuda.bindings import driver

    return driver.cuMemGetInfo()[1]


def test_memory_lies_where_tensorrt_takes_it(gpu):
    held = [gpu.allocate(size) for size in (1, 2, 77, 255, 256, 257, 4097, 32768, 10**6 + 1)]
    assert [memory.address % 256 for memory in held] == [0] * len(held)


def test_copies_arrive(gpu):
    host, memory, back = gpu.allocate_host(4096), gpu.allocate(4096), gpu.allocate_host(4096)
    host.array[:] = np.random.default_rng(0).integers(0, 256, 4096, np.uint8)
    gpu.copy(memory, host, 4096)
    gpu.copy(back, memory, 4096)
    gpu.synchronize()
    assert (host.array == back.array).all()


def test_other_threads_may_use_the_gpu(gpu, check):
    errors = []

    def work():
        try:
            with gpu.alone():
                memory, host = gpu.allocate(1024), gpu.allocate_host(1024)
                gpu.copy(memory, host, 1024)
                check()
                gpu.synchronize()
        except EngineError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []


def test_too_little_memory_is_named_and_the_gpu_goes_on(gpu, check):
    with pytest.raises(EngineError, match=r"^the GPU has no 4,398,046.5 MB left"):
        gpu.allocate(2**42)
    check()
    gpu.synchronize()


def test_a_failed_recording_leaves_the_stream_usable(gpu, check):
    def fails():
        check()
        raise ValueError("planned")

    with pytest.raises(ValueError, match="planned") as caught:
        gpu.record(fails)
    # While the error still holds what was recorded.
    gpu.synchronize()
    assert caught.tb
    gpu.record(check).launch()
    gpu.synchronize()


def test_waiting_in_a_recording_fails_and_the_next_one_does_not(gpu, check):
    with pytest.raises(EngineError, match="CUDA_ERROR_STREAM_CAPTURE"):
        gpu.record(gpu.synchronize)
    gpu.record(check).launch()
    gpu.synchronize()


def test_what_is_freed_while_work_is_recorded_is_not_part_of_it(gpu, check):
    old = [gpu.allocate(1 << 20), gpu.allocate_host(1 << 20)]

    def work():
        check()
        old.clear()  # as a collection of an old session would

    graph = gpu.record(work)
    for _ in range(3):
        graph.launch()
    gpu.synchronize()


def test_the_pool_grows_by_no_more_than_a_few_blocks(gpu, record_property):
    gpu.synchronize()
    before = free_memory()
    held = gpu.allocate(3 << 20)
    gpu.synchronize()
    taken = before - free_memory()
    record_property("bytes that 3 MiB take", taken)
    print(f"\n{taken / 2**20:.0f} MiB for 3 MiB")
    assert taken <= 64 << 20
    del held


def test_a_launch_takes_the_host_microseconds(gpu, check, record_property):
    """The figure is for the record; the bound only tells that launches do not wait."""
    graph, found = gpu.record(check), {}
    for name, launch in (("kernel", check), ("graph", graph.launch)):
        launch()
        gpu.synchronize()
        taken = []
        for _ in range(LAUNCHES):
            start = time.perf_counter()
            launch()
            taken.append(time.perf_counter() - start)
        gpu.synchronize()
        found[name] = 1e6 * statistics.median(taken)
        record_property(f"microseconds of a {name}'s launch", found[name])
        print(f"\n{found[name]:.1f} µs of the host for a {name}")
    assert max(found.values()) < 1000
