"""What the driver of the tests refuses, and what the project's GPU does about that."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from bksdm.engines.errors import EngineError
from bksdm.runtime.cuda.device import Part
from bksdm.runtime.cuda.gpu import Gpu

from .simulated import TARGET, accepted, machine_code


@pytest.fixture
def gpu(driver):
    return Gpu()


@pytest.fixture
def check(gpu):
    """A kernel, which looks at the 8 bytes at an address."""
    kernel, control = gpu.load(machine_code(TARGET), "check_embeddings"), gpu.allocate(256)
    return lambda address: kernel(4, control.address, address, 4)


def in_thread(work):
    """Return the error of work in a thread of its own."""
    errors = []

    def run():
        try:
            work()
        except EngineError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return "".join(errors)


def test_a_thread_needs_a_current_context(gpu, check):
    memory = gpu.allocate(8)
    assert "kernel check_embeddings cannot run (CUDA_ERROR_INVALID_CONTEXT" in in_thread(
        lambda: check(memory.address)
    )

    def alone():
        with gpu.alone():
            check(memory.address)
            gpu.synchronize()

    assert in_thread(alone) == ""


def test_each_gpu_has_a_context_of_its_own(gpu):
    second = Gpu(1)
    memory, host = second.allocate(8), second.allocate_host(8)
    mine, my_host = gpu.allocate(8), gpu.allocate_host(8)
    with gpu.alone():
        with pytest.raises(EngineError, match=r"be copied .CUDA_ERROR_INVALID_HANDLE"):
            second.copy(memory, host, 8)
        with second.alone():
            second.copy(memory, host, 8)
            second.synchronize()
        gpu.copy(mine, my_host, 8)
        gpu.synchronize()
    with pytest.raises(EngineError, match=r"^there is no GPU 2 \(.*\[0, 2\)"):
        Gpu(2)


def test_nothing_is_allocated_or_waited_for_in_a_recording(gpu):
    from cuda.bindings import driver as binding

    with pytest.raises(EngineError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        gpu.record(gpu.synchronize)
    # cuda-core refuses these before the driver does.
    with pytest.raises(RuntimeError, match="capturing stream"):
        gpu.record(lambda: gpu.allocate(8))
    with pytest.raises(AssertionError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        gpu.record(lambda: accepted(binding.cuMemAllocAsync(8, gpu.stream)))

    def in_spite_of_it():
        with pytest.raises(EngineError):
            gpu.synchronize()

    with pytest.raises(EngineError, match="recording failed"):
        gpu.record(in_spite_of_it)


def test_only_page_locked_memory_is_copied(gpu):
    array, memory = np.zeros(8, np.uint8), gpu.allocate(8)
    with pytest.raises(EngineError, match=r"8 bytes cannot be copied .CUDA_ERROR_INVALID_VALUE"):
        gpu.copy(memory, Part(array.ctypes.data, 8), 8)


def test_a_copy_shows_after_a_wait(gpu):
    source, memory, target = gpu.allocate_host(8), gpu.allocate(8), gpu.allocate_host(8)
    source.array[:] = 7
    gpu.copy(memory, source, 8)
    gpu.copy(target, memory, 8)
    assert (target.array == 0xFF).all()
    gpu.synchronize()
    assert (target.array == 7).all()


def test_addresses_that_are_wrong_show_in_the_wait(gpu, check):
    memory = gpu.allocate(16)
    check(memory.address + 1)
    with pytest.raises(EngineError, match=r"the GPU failed .CUDA_ERROR_MISALIGNED_ADDRESS"):
        gpu.synchronize()
    address = memory.address
    del memory
    check(address)
    with pytest.raises(EngineError, match=r"the GPU failed .CUDA_ERROR_ILLEGAL_ADDRESS"):
        gpu.synchronize()
    # The 300th pixel of 299.
    pixels, control = gpu.load(machine_code(TARGET), "to_pixels"), gpu.allocate(256)
    sample, goal = gpu.allocate(2 * 3 * 300), gpu.allocate(3 * 299)
    pixels(300, control.address, sample.address, goal.address, 300, 1)
    with pytest.raises(EngineError, match=r"the GPU failed .CUDA_ERROR_ILLEGAL_ADDRESS"):
        gpu.synchronize()
    gpu.synchronize()


def test_freed_memory_is_not_copied_not_even_by_a_graph(gpu):
    memory, other = gpu.allocate(8), gpu.allocate(8)
    address = memory.address
    graph = gpu.record(lambda: gpu.copy(other, Part(address, 8), 8))
    graph.launch()
    del memory
    with pytest.raises(EngineError, match="8 bytes cannot be copied"):
        gpu.copy(other, Part(address, 8), 8)
    with pytest.raises(EngineError, match="a recorded step cannot run"):
        graph.launch()
    # What was enqueued before the memory was freed may run.
    gpu.synchronize()


def test_code_for_another_gpu_is_not_loaded(gpu):
    with pytest.raises(EngineError, match=r"feed cannot be loaded .CUDA_ERROR_NO_BINARY_FOR_GPU"):
        gpu.load(machine_code("sm90"), "feed")
    # Of the same major version, and no later.
    assert gpu.load(machine_code("sm86"), "feed")


def test_scratch_of_too_few_bytes_is_noticed(load, built, device, driver):
    model = load(built)
    model("a", num_inference_steps=1, seed=0)
    device.engines[b"vae_decoder"].scratch *= 1000
    with pytest.raises(AssertionError, match="CUDA_ERROR_INVALID_VALUE"):
        model("a", num_inference_steps=1, seed=0)


def test_what_the_driver_lacks_says_so(gpu, capfd):
    from cuda.bindings import driver

    assert int(driver.cuCtxSynchronize()[0]) == 801
    assert capfd.readouterr().err == "tests/cuda/fake_driver has no cuCtxSynchronize\n"


def test_a_failed_recording_ends_and_leaves_the_stream_usable(gpu, check, driver):
    memory = gpu.allocate(8)

    def fails():
        check(memory.address)
        raise ValueError("planned")

    with pytest.raises(ValueError, match="planned") as caught:
        gpu.record(fails)
    # As the executor does, while the error still holds what was recorded.
    gpu.synchronize()
    assert driver.recordings == 0
    assert caught.tb
    gpu.record(lambda: check(memory.address)).launch()
    gpu.synchronize()


def test_what_is_freed_while_work_is_recorded_is_not_part_of_it(gpu, check, driver):
    memory, old = gpu.allocate(8), [gpu.allocate(1000), gpu.allocate_host(1000)]
    before = driver.in_use

    def work():
        check(memory.address)
        old.clear()  # as a collection of an old session would

    graph = gpu.record(work)
    for _ in range(3):
        graph.launch()
    gpu.synchronize()
    assert driver.in_use == before - 2000


def test_memory_that_another_thread_lets_go_of_is_freed(gpu, driver):
    gpu.synchronize()
    before = driver.in_use
    held = [gpu.allocate(1000), gpu.allocate_host(1000)]
    assert in_thread(held.clear) == ""
    gpu.synchronize()
    assert driver.in_use == before


def test_memory_that_an_error_lets_go_of_does_not_hide_it(gpu, driver):
    with driver.limited(driver.in_use + 2_000), pytest.raises(EngineError, match="GPU has no"):
        _ = gpu.allocate_host(1_000), gpu.allocate_host(3_000)


def test_too_little_memory_says_how_much_there_is(gpu, driver):
    with driver.limited(driver.in_use + 2_000_000):
        for allocate in (gpu.allocate, gpu.allocate_host):
            with pytest.raises(
                EngineError, match=r"^the GPU has no 3.0 MB left \(2.0 MB of .* MB are free\); make"
            ):
                allocate(3_000_000)
    assert gpu.allocate(3_000_000).size == 3_000_000


def test_a_model_draws_again_after_it_had_too_little_memory(load, built, driver, device):
    few, many = ({"num_inference_steps": n, "sampler": "ddim", "seed": 0} for n in (2, 70))
    expected = [load(built)("a", **arguments).pixels for arguments in (few, many)]
    model = load(built)
    device.synchronize()
    before, other = driver.in_use, load(built)
    other("a", **few)
    device.synchronize()
    taken = driver.in_use - before
    # Nothing of a session, half of it, all but its last allocations; then room for more steps.
    for arguments, spare in ((few, 0), (few, taken // 2), (few, taken - 5000), (many, 30_000)):
        if arguments is few:
            model.executor._sessions.clear()
        device.synchronize()
        with driver.limited(driver.in_use + spare):
            for _ in range(2):
                with pytest.raises(EngineError, match="the GPU has no"):
                    model("a", **arguments)
        np.testing.assert_array_equal(model("a", **few).pixels, expected[0])
    np.testing.assert_array_equal(model("a", **many).pixels, expected[1])
